"""How a model presents itself on the Hub: card data and text."""
