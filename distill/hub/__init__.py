"""Checkpoints in diffusers' layout, as priors: `text_to_image.load(checkpoint.found(name))`.

    known           what is on the hub, for `threed prior list`
    checkpoint      where a named checkpoint's files are, and whether they are whole; nothing heavy is imported for it
    fit             whether its parts are what their configurations say, and fit one another
    download        what the local cache of the hub lacks, when the user names an id
    families        what tells Stable Diffusion, XL, 3, Flux and DeepFloyd IF apart
    mvdream         the family that is told cameras: its network, its weights, its cameras
    schedule        how noisy z_t is at time t, by a checkpoint's own scheduler
    words           prompts as numbers, kept on disk, so that text encoders need not stay in memory
    text_to_image   the prior
    shown           priors that are told a picture in the place of words, which are
    novel_view      Zero-1-to-3 and Stable-Zero123, from any camera
    zero123plus     Zero123++, a tile of six views, by the network of reference_attention
    wonder3d        Wonder3D, colours and normals of six views, by the network of cross_domain
    steered         that, shown something beside what it denoises
    controlnet      ControlNets, which are shown the scene's depth or normals
    instruct        InstructPix2Pix, which is shown the original

Checkpoints are files of strangers: weights are read from safetensors alone, and no code that comes with them is run.
"""
