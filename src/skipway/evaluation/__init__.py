"""How good a network is: metrics, pictures. Never imports training."""
