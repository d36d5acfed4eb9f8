"""Import published checkpoints: the layouts of the CCNet authors and of mmsegmentation."""
