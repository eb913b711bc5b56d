// main() of tests of one process.
#include "tests/test_main.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const int failed = pesc::run_all_tests();
  if (testing::UnitTest::GetInstance()->test_to_run_count() > 0) return failed;
  std::fprintf(stderr, "no case of this program has such a name\n");
  return 1;
}
