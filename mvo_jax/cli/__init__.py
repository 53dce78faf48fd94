"""`python -m mvo_jax VERB`: one small file a verb."""
