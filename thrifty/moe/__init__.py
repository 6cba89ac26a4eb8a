"""ToMoE: a dense language model becomes a mixture of experts with a fixed active budget."""
