"""DINOv2's positions off their native grid, and the files in which Meta publishes DINOv2 and DINOv3."""
