"""From images to verified caches."""
