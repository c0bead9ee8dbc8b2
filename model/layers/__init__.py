"""The mixers and blocks a hybrid model is made of."""
