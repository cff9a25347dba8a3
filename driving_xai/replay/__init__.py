"""A drive played with the model's evidence drawn on the road, scored while it plays."""
