"""The rule that chooses tile sizes where no pinned tile applies.

With every supported version of Triton, the launches in ``launch_set.py`` compile with its tiles without spills, for
every GPU listed there. A tile's register count varies by dozens between versions.
"""

from .problem import Device, Problem, Tile, has_descriptors


def rule_tile(kernel: str, problem: Problem, length: int, device: Device) -> Tile:
    """Return the tile for lines of ``length``; ``kernel`` is "forward" or "backward".

    In half precision, the forward pass holds all keys of a line of up to 128 in one tile; for D up to 64, Hopper and
    datacenter Blackwell also hold 161 to 256 keys in one, and up to 128 in the backward pass (64 on other GPUs). For
    other lines, and in float32, whose three TF32 products need three times the registers, the kernels loop over tiles
    small enough that a line just above a power of two (129 and 257 come from crops of 1025 and 2049 at stride 8) is
    not padded to the next one. A warp owns 16 queries, and more warps would repeat each other's products. Hopper's
    tiles for lines of 65 to 128 and 161 to 256 are the fastest on an H200 among those that spill with no supported
    Triton version (``results/kernels_log.md``).
    """
    if device.arch:
        return _amd_tile(kernel, problem, length)
    if problem.dtype == "float32":
        return _float32_tile(kernel, problem, device)
    return (_forward_tile if kernel == "forward" else _backward_tile)(problem, length, device)


def _forward_tile(problem: Problem, length: int, device: Device) -> Tile:
    """Return the tile of the forward pass in half precision."""
    wide, tall = problem.query_channels > 64, _is_tall(length)
    if length <= 64:
        # On consumer Blackwell GPUs, with D over 64, the wider slab spills 8 bytes with Triton 3.6.
        return Tile(64, 64, 32 if _is_consumer_blackwell(device) and wide else 64, 4, 3)
    if length <= 128:
        if _has_little_memory(device):
            # A tile of 128 queries needs up to 144 KB if the output so far or the residual is in float32.
            return Tile(64, 128, 32, 4, 3)
        # Two programs, or three with descriptors, share a multiprocessor: one loads while another multiplies.
        if _is_hopper(device) and not wide:
            tile = Tile(64, 128, 64, 4, 3)
            return tile._replace(descriptors=has_descriptors(tile, problem, length, device))
        return Tile(128, 128, 32, 8, 3) if _is_datacenter(device) or wide else Tile(128, 128, 64, 8, 2)
    if _is_datacenter(device) and not wide and 160 < length <= 256:
        # A loop over keys would recompute the scores for each slab of 128 channels.
        if _is_hopper(device):
            tile = Tile(64, 256, 32, 4, 4, descriptors=True)
            if has_descriptors(tile, problem, length, device):
                return tile
            return Tile(128, 256, 32, 8, 5) if tall else tile._replace(descriptors=False)
        return Tile(128, 256, 32, 8, 3) if tall else Tile(64, 256, 32, 4, 3)
    if tall and not wide:
        return Tile(128, _less_padding(length, 64, 32), 128, 8, 3)
    return Tile(64, 32, 64, 4, 2) if _has_little_memory(device) else Tile(64, 32, 128, 4, 3)


def _backward_tile(problem: Problem, length: int, device: Device) -> Tile:
    """Return the tile of the backward pass in half precision.

    With two stages, the loop over slabs would wait for the copies that it has just issued.
    """
    datacenter, hopper = _is_datacenter(device), _is_hopper(device)
    # On consumer Blackwell GPUs, tiles of four warps spill 8 to 24 bytes with Triton 3.6, 3.7 or 3.9.
    warps = 8 if _is_consumer_blackwell(device) else 4
    narrow = Tile(64, 32, 32, warps, 3)
    if problem.query_channels > 64:
        if length <= 64:
            # On other GPUs, the narrow tile spills up to 224 bytes; on sm_100, narrower slabs 16 with Triton 3.8.
            return Tile(64, 64, 64 if _is_blackwell(device) else 32, 8, 3)
        return Tile(64, 64, 32, 8, 3) if datacenter else narrow
    if length <= 64:
        return Tile(64, 64, 32, warps, 3)
    if length <= 128:
        if _has_little_memory(device) and problem.dtype == "float16":
            return Tile(128, 64, 16, 8, 4)  # wider slabs of the output, which is kept in float32, need 100 KB
        return Tile(128, 128 if datacenter else 64, 32, 8, 4 if hopper else 3)
    if _is_tall(length) and not _has_little_memory(device):  # on those GPUs, tiles of 128 queries spill
        return Tile(128, 128 if datacenter else 32, 32, 8, 5 if hopper else 3)
    return Tile(64, 64, 32, 4, 3) if datacenter else narrow


def _float32_tile(kernel: str, problem: Problem, device: Device) -> Tile:
    """Return the tile of either pass in float32."""
    wide = problem.query_channels > 64
    if kernel == "backward":
        if wide:
            # Fewer warps cannot hold 128 channels of query, key and their gradients. Prefetching the next slab would
            # spill.
            return Tile(16, 16, 64, 8, 1)
        return Tile(32, 32, 16, 8, 2)  # four warps would use all 255 registers
    warps = 8 if _is_blackwell(device) else 4  # Blackwell's MMAs read shared memory, so extra warps duplicate nothing
    if wide:
        return Tile(64, 16, 32, warps, 2)
    return Tile(64, 32 if _is_datacenter(device) else 16, 32 if _is_consumer_blackwell(device) else 64, warps, 2)


def _amd_tile(kernel: str, problem: Problem, length: int) -> Tile:
    """Return a tile that compiles without spills for gfx942 and gfx950, within the 64 KB of shared memory of gfx942.

    A program of four wavefronts has 512 registers per thread (of eight, only 256), so in half precision a line of up to
    128 fits in one tile in the backward pass too. In float32, such a tile would need too much shared memory, although
    AMD's matrix units multiply float32 natively.
    """
    half, wide = problem.dtype != "float32", problem.query_channels > 64
    if kernel == "forward":
        if length <= 128:
            if half:
                return Tile(64, 64, 64, 4, 2) if length <= 64 else Tile(128, 128, 64, 8, 2)
            return Tile(64, 64 if length <= 64 else 128, 32, 4, 2)
        if half and not wide and 160 < length <= 256:
            return Tile(64, 256, 32, 4, 2)
        return Tile(64, 32, 128 if half else 64, 4, 2)
    side = 128 if half and 64 < length <= 128 else 64
    return Tile(side, side, 32 if half else 16, 4, 2)


def _is_hopper(device: Device) -> bool:
    return device.capability[0] == 9


def _is_blackwell(device: Device) -> bool:
    return device.capability[0] == 10


def _is_consumer_blackwell(device: Device) -> bool:
    return device.capability[0] == 12


def _is_datacenter(device: Device) -> bool:
    """Return whether the GPU is a Hopper or datacenter Blackwell.

    Consumer GPUs, even newer ones, have Ampere's matrix instructions and little shared memory.
    """
    return _is_hopper(device) or _is_blackwell(device)


def _has_little_memory(device: Device) -> bool:
    """Return whether a program has at most 99 KB of shared memory, as on GeForce GPUs, A10, A40, L4 and L40.

    By capability, because JAX does not report the memory.
    """
    return device.capability in ((8, 6), (8, 9)) or _is_consumer_blackwell(device)


def _is_tall(length: int) -> bool:
    """Return whether 128 queries per tile are worth their padding of the line."""
    return _less_padding(length, 128, 64) == 128


def _less_padding(length: int, large: int, small: int) -> int:
    """Return ``large``, which reads less and keeps more on chip, unless its padded line is over 10% longer."""
    return large if -(-length // large) * large <= 1.1 * (-(-length // small) * small) else small
