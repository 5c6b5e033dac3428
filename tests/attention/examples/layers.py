import torch

import attention

model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(256, 4, batch_first=True), 2).eval()
x = torch.randn(1, 1000, 256)

handle = attention.accelerate(model, attention.AttentionOptions(tolerance=0.1), layers=[0, "layers.1.*"])
with torch.no_grad():
    y = model(x)
print(handle.report())  # which layers, how many keys they touched, and the worst error
handle.restore()
