"""Published checkpoints: the layouts of the CCNet authors and of mmsegmentation, and networks that represent them."""
