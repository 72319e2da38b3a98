"""The stages that turn images into verified caches."""
