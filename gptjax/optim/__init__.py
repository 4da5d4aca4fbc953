"""Optimizers, and what is done with gradients beside.

    optimizers     the table of optimizers; weight decay and muP's factors, which come behind each of them
    layer_rates    learning rates that fall from the last layer to the embeddings, for fine-tuning
    probe          whether an optimizer gives a direction, and how large that is
    rounding       stochastic rounding, for parameters and moments kept in bfloat16
    skipping       updates that are left out, decided on the device
    rank_budget    which ranks an AdaLoRA adapter keeps
    noise_scale    the gradient noise scale, estimated from microbatches

To add an optimizer: optimizers.Optimizer.
"""
