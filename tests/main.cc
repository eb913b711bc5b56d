// main() of tests of one process.
#include "tests/test_main.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return pesc::run_all_tests();
}
