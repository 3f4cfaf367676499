// Which of the built CUDA code a card runs. Targets are written as the build names them: "80",
// "90a", "80-virtual" (PTX), separated by spaces.
#pragma once

#include <string_view>

namespace flashint8 {

// The version of the code that a card runs for one target, or 0: machine code runs within one major
// version, from its minor version up; architecture-specific code ("a") on that exact card; PTX on
// any newer one.
constexpr int code_of_target(std::string_view target, int compute_capability) {
  int built = 0;
  size_t i = 0;
  for (; i < target.size() && target[i] >= '0' && target[i] <= '9'; ++i) {
    built = built * 10 + (target[i] - '0');
  }
  const std::string_view suffix = target.substr(i);
  const bool exact = suffix.substr(0, 1) == "a";
  const bool ptx = suffix.size() >= 8 && suffix.substr(suffix.size() - 8) == "-virtual";
  const bool runs = exact ? built == compute_capability
                    : ptx ? built <= compute_capability
                          : built / 10 == compute_capability / 10 && built <= compute_capability;
  return runs ? built : 0;
}

// The newest code of `targets` that the card runs, as 10 * major + minor; 0: none.
constexpr int code_version(std::string_view targets, int compute_capability) {
  int best = 0;
  while (!targets.empty()) {
    const size_t end = targets.find(' ');
    const int code = code_of_target(targets.substr(0, end), compute_capability);
    if (code > best) best = code;
    if (end == std::string_view::npos) break;
    targets.remove_prefix(end + 1);
  }
  return best;
}

// Whether one of `targets` is code for this very card, which may use what no other card has.
constexpr bool has_own_code(std::string_view targets, int compute_capability) {
  while (!targets.empty()) {
    const size_t end = targets.find(' ');
    const std::string_view target = targets.substr(0, end);
    if (target.find('a') != std::string_view::npos &&
        code_of_target(target, compute_capability) == compute_capability) {
      return true;
    }
    if (end == std::string_view::npos) break;
    targets.remove_prefix(end + 1);
  }
  return false;
}

static_assert(code_version("80 90a 80-virtual", 86) == 80);
static_assert(code_version("80 90a 80-virtual", 90) == 90);
static_assert(code_version("80-virtual", 90) == 80);
static_assert(code_version("90a", 100) == 0);
static_assert(has_own_code("80 90a 80-virtual", 90));
static_assert(!has_own_code("80 90 80-virtual", 90));
static_assert(!has_own_code("90a", 80));

}  // namespace flashint8
