"""How the locator of the left ventricle is trained and scored; mvo_jax/data/locator runs it."""
