"""The networks, their parts by name, and their counts.

    architectures        a model of a config: made from a key, or as a graph and shapes, with what its parameters state
    language_model       what every model shares: from its final activations to losses and logits
    gpt, gpt_counts      GPT-1, GPT-2 and GPT-3 and modern variants; what such a model has and costs, counted without JAX
    lstm, lstm_counts    an LSTM to compare with, likewise
    heads, labelled      heads beside that of the language model; what they make of labelled examples: outputs and losses
    scores               what a reward model makes of answers
    critic               what tells, at each token, how much reward is still to come
    layers               linear maps, norms, activations: named variants stand in tables
    rotary               rotary positions
    rope_scaling         rates of rotary positions for longer contexts: linear, dynamic, llama3, yarn
    attention            attention in plain XLA; the table of kernels, and which one a config runs
    cache_layout         a cache of keys and values: the order of its dimensions
    adapters             small trained parts in a frozen model, one file a kind
    context_attention    attention over sequences that the mesh splits
    splash               the TPU flash kernel that ships with JAX
    triton_attention     a flash kernel for GPUs, with dropout, packed documents and split sequences
    int8                 weights of the layers as bytes with scales, for making text
    nf4                  weights of the layers in four bits, frozen under an adapter
    loss                 cross-entropy, holding the logits of a part of the vocabulary at a time
    parametrization      what width and depth do to initialisation, learning rates and multipliers: standard, mup, completep
    placed               a model on a mesh, for reading: evaluation, notebooks and scoring take this much of a config
    roles                what a parameter is to an optimizer, stated beside its shape

Which architectures there are, and how to add one: config/catalogue.py.
"""
