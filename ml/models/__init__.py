"""Transfer models. `ml.models.registry` lists them; importing this package imports none of them."""
