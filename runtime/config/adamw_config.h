// The optimizer's settings.
#pragma once

namespace pesc {

struct AdamWConfig {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double clip_norm = 0;  // 0: no clipping
};

}  // namespace pesc
