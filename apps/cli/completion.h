// Shell completion and the man page, both written from the verbs themselves, so that they are never behind.
#pragma once

#include <functional>
#include <string>

namespace CLI {
class App;
}

namespace porthole::app {

// `shell`: "bash", "zsh" or "fish". The whole script.
std::string completion_script(const CLI::App& root, const std::string& shell);
// roff (man macros). `version`: of the program.
std::string man_page(const CLI::App& root, const std::string& version);

// `porthole completion ...`; added last, so that it sees all the others.
void add_completion_command(CLI::App& root, std::function<int()>& run, const std::string& version);

}  // namespace porthole::app
