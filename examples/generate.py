"""Generate from a compressed cache; beyond some hundred tokens it takes a third of the bytes of bf16.

.venv/bin/python examples/generate.py
"""

from thrifty import llm
from thrifty.kv.apply import apply
from thrifty.kv.codecs.hack import Hack
from thrifty.kv.job import KvJob
from thrifty.kv.methods.uniform import Uniform

language = llm.load("smollm2")
job = KvJob.of(language.model, Hack(k_bits=4, v_bits=4))
plan = Uniform().plan(job)
cache = apply(plan, job)

messages = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
prompt = language.tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = language.model.generate(**prompt, past_key_values=cache, max_new_tokens=40, do_sample=False)
print(language.tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
print(f"{cache.get_seq_length()} tokens in {cache.nbytes:,} bytes, planned by {plan.method}")
