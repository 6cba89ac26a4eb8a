"""A mixture of experts out of a dense model, in Python: plan, apply, compare. The model here is tiny and random.

python examples/moe_experts.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from thrifty.moe.apply import apply
from thrifty.moe.evaluate import as_it_is, quality
from thrifty.moe.job import MoeJob
from thrifty.moe.methods.tomoe import Tomoe
from thrifty.moe.methods.wanda_sp import WandaSp
from thrifty.moe.text import Corpus

torch.manual_seed(0)
shape = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
dense = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, initializer_range=0.2)).eval()

tokens = torch.randint(200, (64, 32))  # with a tokenizer: thrifty.moe.text.corpus(language, texts, window)
corpus = Corpus(("random tokens",), (tokens[:48],), held_out=tokens[48:])
job = MoeJob.of(dense, corpus, active=0.5, widths="equal", steps=100, batch=4)

made = {}
for method in (WandaSp(), Tomoe(num_experts=4)):
    plan = method.plan(job)
    made[type(method).__name__] = as_it_is(apply(plan, dense, layout="standard"))

for name, row in quality(dense, corpus.held_out, made).items():
    print(f"{name:8} half of each MLP active: KL divergence from the dense model {row['kl']:.3f}")
