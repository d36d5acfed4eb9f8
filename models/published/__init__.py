"""Import published checkpoints in the layouts of the CCNet authors and of mmsegmentation."""
