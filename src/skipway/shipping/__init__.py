"""A trained network in use. Never imports training."""
