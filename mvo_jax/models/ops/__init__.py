"""How layers are computed: lowerings, normalisation, pooling, attention."""
