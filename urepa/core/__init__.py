"""Code for all other packages: types, errors, addressed random draws, files, progress, images, ranks, code version."""
