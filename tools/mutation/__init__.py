"""Small sources of images in every format, and ways to spoil them: what ``mutate_images`` uses."""
