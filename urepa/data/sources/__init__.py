"""Sources of images: folders, CIFAR's binary files, parquet files, tar shards and the hub."""
