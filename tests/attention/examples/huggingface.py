import torch
import transformers

import attention

attention.register("dci", attention.AttentionOptions(tolerance=0.05))

config = transformers.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
model = transformers.LlamaForCausalLM(config).eval()  # or from_pretrained(…, attn_implementation="dci")
model.set_attn_implementation("dci")
with torch.no_grad():
    logits = model(torch.randint(0, 1000, (1, 500))).logits
