import torch

import attention

model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(256, 4, batch_first=True), 2).eval()
x = torch.randn(1, 1000, 256)

with torch.no_grad(), attention.use() as usage:  # every scaled_dot_product_attention in here
    y = model(x)
print(usage.report())
