// How often to save, and what of the time is then left for steps. Failures come at random, as a Poisson process
// of the mean time between failures; after each the run starts again and does the steps since the last save once
// more. J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17 (1974); J. T.
// Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation
// Computer Systems 22 (2006).
#pragma once

namespace pesc {

// In seconds.
struct FailureCosts {
  double mtbf = 0;     // of the whole job
  double save = 0;     // for which a save stops the steps
  double restart = 0;  // from a failure to the first step after it
};

// The share of all time that is in steps which count, with `interval` seconds of steps between two saves: Daly's
// complete model, interval / (mtbf e^(restart / mtbf) (e^((interval + save) / mtbf) - 1)).
[[nodiscard]] double goodput(const FailureCosts& costs, double interval);

// The interval of the highest goodput: Daly's estimate, which is Young's sqrt(2 save mtbf) where a save takes
// much less time than passes between failures. 0 where a save costs nothing: then as often as possible.
[[nodiscard]] double best_save_interval(const FailureCosts& costs);

}  // namespace pesc
