"""What is checked of a composed config before anything is built."""
