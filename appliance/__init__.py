"""What is shipped, and how it becomes images. Runs on the build host."""
