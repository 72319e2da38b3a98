"""DINOv2's positions on other grids, and the files in which Meta publishes DINOv2 and DINOv3."""
