import torch

import attention

model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(64, 4, batch_first=True), 2).eval()
samples = torch.randn(1, 1000, 64)  # like the inputs to come, and as long

short = attention.AttentionOptions(exact_below=256)  # for this example: mostly, 4,096 keys and more are worth it
tuned = attention.calibrate(model, samples, max_logit_change=0.05, options=short)
tuned.save("tuned.json")

handle = attention.accelerate(model, attention.LayerOptions.load("tuned.json"))
with torch.no_grad():
    y = model(samples)
