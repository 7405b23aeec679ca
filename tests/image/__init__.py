"""The images, built and run as a restricted pod runs them."""
