"""What all rooms may use: types, errors, random addresses, files, progress, pictures, ranks, the code's version."""
