"""What a run costs, before it is started: parameters, FLOPs, memory, hours and disk.

    nanogen plan imagenet/flux2 --gpus 8 --gpu h100
    nanogen plan --all

Nothing is loaded: networks are built on the meta device (`model`), where their operations are
counted (`cost`), and what is not here (data, tokenizers, text encoders) is stood in for by its
published shape (`shapes`).
"""
