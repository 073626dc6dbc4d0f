#include "cli/completion.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <vector>

namespace porthole::app {
namespace {

struct Flag {
  std::vector<std::string> names;   // "-c", "--count"
  std::string description;
  bool takes_value = false;
};

// One verb with what may follow it.
struct Verb {
  std::string path;                 // "porthole node ping"
  std::string description, footer;
  std::vector<std::pair<std::string, std::string>> verbs;        // name, description
  std::vector<Flag> flags;
  std::vector<std::pair<std::string, std::string>> positionals;  // name, description
  bool wants_peer = false;          // a positional is a device of the tailnet
};

// Positionals that are names of peers, in verbs that know a running node.
bool is_peer(const std::string& path, const std::string& name) {
  return path.starts_with("porthole node ") && (name == "name" || name == "host" || name == "peer");
}

void collect(const CLI::App& app, const std::string& path, std::vector<Verb>& out) {
  Verb v{path, app.get_description(), app.get_footer(), {}, {}, {}, false};
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) v.verbs.emplace_back(sub->get_name(), sub->get_description());
  for (const CLI::Option* o : app.get_options()) {
    if (!o->get_positional() || !o->get_lnames().empty() || !o->get_snames().empty()) {
      Flag f;
      for (const std::string& n : o->get_snames()) f.names.push_back("-" + n);
      for (const std::string& n : o->get_lnames()) f.names.push_back("--" + n);
      f.description = o->get_description();
      f.takes_value = o->get_items_expected_min() > 0;
      v.flags.push_back(std::move(f));
    } else {
      v.positionals.emplace_back(o->get_name(true), o->get_description());
      v.wants_peer |= is_peer(path, v.positionals.back().first);
    }
  }
  out.push_back(std::move(v));
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) collect(*sub, path + " " + sub->get_name(), out);
}

std::vector<Verb> all_verbs(const CLI::App& root) {
  std::vector<Verb> out;
  collect(root, "porthole", out);
  return out;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// 'it'\''s' as all three shells read it; fish also wants backslashes doubled, which no description has.
std::string in_quotes(const std::string& text) {
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string join(const std::vector<std::string>& list, const std::string& between) {
  std::string out;
  for (const std::string& s : list) out += (out.empty() ? "" : between) + s;
  return out;
}

// Patterns of a shell's `case`, for all verbs that have verbs below or that `select` wants.
template <typename F>
std::string patterns(const std::vector<Verb>& verbs, F select) {
  std::vector<std::string> out;
  for (const Verb& v : verbs)
    if (select(v)) out.push_back(in_quotes(v.path));
  return join(out, "|");
}

std::string value_flags(const std::vector<Verb>& verbs) {
  std::vector<std::string> out;
  for (const Verb& v : verbs)
    for (const Flag& f : v.flags)
      for (const std::string& n : f.names)
        if (f.takes_value && std::find(out.begin(), out.end(), n) == out.end()) out.push_back(n);
  std::sort(out.begin(), out.end());
  return join(out, "|");
}

std::string bash(const std::vector<Verb>& verbs) {
  std::string out =
      "# bash completion for porthole; written by: porthole completion bash\n"
      "_porthole_peers() {\n"
      "  porthole node status --json --statedir \"$1\" 2>/dev/null | grep -o '\"name\":\"[^\"]*\"' | cut -d'\"' -f4\n"
      "}\n\n"
      "_porthole() {\n"
      "  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} where=porthole statedir= words= peers= i\n"
      "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
      "    if [[ ${COMP_WORDS[i]} == --statedir ]]; then\n"
      "      statedir=${COMP_WORDS[i+1]}\n"
      "      [[ $statedir == \"=\" ]] && statedir=${COMP_WORDS[i+2]}\n"
      "    fi\n"
      "    case \"$where ${COMP_WORDS[i]}\" in\n"
      "      " + patterns(verbs, [](const Verb& v) { return v.path != "porthole"; }) + ") where=\"$where ${COMP_WORDS[i]}\" ;;\n"
      "    esac\n"
      "  done\n"
      "  [[ $prev == \"=\" ]] && prev=${COMP_WORDS[COMP_CWORD-2]}\n"
      "  [[ $cur == \"=\" ]] && cur=\n"
      "  case \"$prev\" in\n"
      "    " + value_flags(verbs) + ") COMPREPLY=($(compgen -f -- \"$cur\")); compopt -o filenames; return ;;\n"
      "  esac\n"
      "  case \"$where\" in\n";
  for (const Verb& v : verbs) {
    std::vector<std::string> words;
    for (const auto& [name, description] : v.verbs) words.push_back(name);
    for (const Flag& f : v.flags)
      for (const std::string& n : f.names) words.push_back(n);
    out += "    " + in_quotes(v.path) + ") words=" + in_quotes(join(words, " ")) + (v.wants_peer ? " peers=yes" : "") + " ;;\n";
  }
  out += "  esac\n"
         "  [[ -n $peers && -n $statedir && $cur != -* ]] && words+=\" $(_porthole_peers \"${statedir/#\\~/$HOME}\")\"\n"
         "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
         "}\n"
         "complete -o default -F _porthole porthole\n";
  return out;
}

// "name:description" of _describe.
std::string described(const std::string& name, const std::string& description) {
  std::string out = name + ":";
  for (char c : first_line(description)) out += c == ':' ? std::string("\\:") : std::string(1, c);
  return in_quotes(out);
}

std::string zsh(const std::vector<Verb>& verbs) {
  std::string out =
      "#compdef porthole\n"
      "# zsh completion for porthole; written by: porthole completion zsh\n"
      "_porthole() {\n"
      "  local where=porthole statedir= peers= i\n"
      "  local -a verbs flags names\n"
      "  for ((i = 2; i < CURRENT; i++)); do\n"
      "    [[ $words[i] == --statedir ]] && statedir=$words[i+1]\n"
      "    [[ $words[i] == --statedir=* ]] && statedir=${words[i]#*=}\n"
      "    case \"$where $words[i]\" in\n"
      "      (" + patterns(verbs, [](const Verb& v) { return v.path != "porthole"; }) + ") where=\"$where $words[i]\" ;;\n"
      "    esac\n"
      "  done\n"
      "  case \"$words[CURRENT-1]\" in\n"
      "    (" + value_flags(verbs) + ") _files; return ;;\n"
      "  esac\n"
      "  case \"$where\" in\n";
  for (const Verb& v : verbs) {
    out += "    (" + in_quotes(v.path) + ")\n";
    std::vector<std::string> list;
    for (const auto& [name, description] : v.verbs) list.push_back(described(name, description));
    if (!list.empty()) out += "      verbs=(" + join(list, " ") + ")\n";
    list.clear();
    for (const Flag& f : v.flags)
      for (const std::string& n : f.names) list.push_back(described(n, f.description));
    out += "      flags=(" + join(list, " ") + ")\n";
    if (v.wants_peer) out += "      peers=yes\n";
    out += "      ;;\n";
  }
  out += "  esac\n"
         "  if [[ $words[CURRENT] == -* ]]; then\n"
         "    _describe -o 'option' flags\n"
         "    return\n"
         "  fi\n"
         "  if [[ -n $peers && -n $statedir ]]; then\n"
         "    names=(${(f)\"$(porthole node status --json --statedir ${~statedir} 2>/dev/null | grep -o '\"name\":\"[^\"]*\"' | cut -d'\"' -f4)\"})\n"
         "    _describe 'peer' names\n"
         "  elif (( $#verbs )); then\n"
         "    _describe 'command' verbs\n"
         "  else\n"
         "    _files\n"
         "  fi\n"
         "}\n"
         "if [[ $funcstack[1] == _porthole ]]; then _porthole \"$@\"; else compdef _porthole porthole; fi\n";
  return out;
}

std::string fish(const std::vector<Verb>& verbs) {
  std::string out =
      "# fish completion for porthole; written by: porthole completion fish\n"
      "function __porthole_at --description 'True in this verb'\n"
      "  set -l where porthole\n"
      "  for word in (commandline -opc)[2..-1]\n"
      "    switch \"$where $word\"\n"
      "      case ";
  std::vector<std::string> list;
  for (const Verb& v : verbs)
    if (v.path != "porthole") list.push_back(in_quotes(v.path));
  out += join(list, " ") +
         "\n"
         "        set where \"$where $word\"\n"
         "    end\n"
         "  end\n"
         "  test \"$where\" = \"$argv\"\n"
         "end\n"
         "function __porthole_peers\n"
         "  set -l words (commandline -opc)\n"
         "  set -l at (contains -i -- --statedir $words); or return\n"
         "  porthole node status --json --statedir $words[(math $at + 1)] 2>/dev/null | grep -o '\"name\":\"[^\"]*\"' | cut -d'\"' -f4\n"
         "end\n"
         "complete -c porthole -f\n";
  for (const Verb& v : verbs) {
    std::string at = "complete -c porthole -n " + in_quotes("__porthole_at " + v.path);
    for (const auto& [name, description] : v.verbs) out += at + " -a " + name + " -d " + in_quotes(first_line(description)) + "\n";
    for (const Flag& f : v.flags) {
      out += at;
      for (const std::string& n : f.names) out += n.starts_with("--") ? " -l " + n.substr(2) : " -s " + n.substr(1);
      if (f.takes_value) out += " -r -F";
      out += " -d " + in_quotes(first_line(f.description)) + "\n";
    }
    if (v.wants_peer) out += at + " -a '(__porthole_peers)' -d peer\n";
  }
  return out;
}

// ---- man page

// Nothing in a line is taken for a request, and dashes can be copied.
std::string roff(const std::string& text) {
  std::string out;
  bool start = true;
  for (char c : text) {
    if (start && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\') out += "\\e";
    else if (c == '-') out += "\\-";
    else out += c;
    start = c == '\n';
  }
  return out;
}

// A footer is prose, then "Example:" or "Examples:" with indented lines, then perhaps prose again.
std::string roff_footer(const std::string& footer) {
  std::string out;
  bool verbatim = false;
  std::size_t at = 0;
  while (at < footer.size()) {
    std::size_t end = std::min(footer.find('\n', at), footer.size());
    std::string line = footer.substr(at, end - at);
    at = end + 1;
    const bool indented = line.starts_with("  ");
    if (indented != verbatim) out += indented ? ".nf\n.RS 4\n" : ".RE\n.fi\n";
    verbatim = indented;
    out += roff(indented ? line.substr(2) : line) + "\n";
  }
  if (verbatim) out += ".RE\n.fi\n";
  return out;
}

}  // namespace

std::string completion_script(const CLI::App& root, const std::string& shell) {
  std::vector<Verb> verbs = all_verbs(root);
  return shell == "bash" ? bash(verbs) : shell == "zsh" ? zsh(verbs) : fish(verbs);
}

std::string man_page(const CLI::App& root, const std::string& version) {
  std::string out = ".\\\" Written by: porthole completion man\n"
                    ".TH PORTHOLE 1 \"\" \"porthole " + version + "\" \"User Commands\"\n"
                    ".SH NAME\nporthole \\- a tailnet node, a media server that is reached through it, and the service that coordinates both\n"
                    ".SH SYNOPSIS\n.B porthole\n.I verb\n.RI [ options ]\n"
                    ".SH DESCRIPTION\n"
                    "Remote access as a property of the app, not of the network it runs on. A node joins a tailnet (Headscale, Tailscale's\n"
                    "control plane or Porthole's own coordination service) in userspace, without TUN device and without root; programs reach\n"
                    "the tailnet through its SOCKS5 and HTTP CONNECT door, through\n.BR \"porthole node nc\" ,\n"
                    "or as a local service that it exposes.\n.PP\n"
                    "Verbs that ask a running node find it by its state directory: give the same\n.B \\-\\-statedir\nas to\n.BR \"porthole node run\" .\n"
                    "Each verb has\n.BR \\-\\-help .\n"
                    ".SH COMMANDS\n";
  const std::vector<Verb> verbs = all_verbs(root);
  for (const Verb& v : verbs) {
    if (v.path == "porthole") continue;
    std::string usage = v.path;
    if (!v.verbs.empty()) usage += " VERB";
    for (const auto& [name, description] : v.positionals) usage += " " + name;
    out += ".SS " + roff(usage) + "\n" + roff(v.description) + ".\n";
    for (const auto& [name, description] : v.positionals) out += ".TP\n.I " + roff(name) + "\n" + roff(description) + "\n";
    for (const Flag& f : v.flags) {
      if (f.names.back() == "--help") continue;
      out += ".TP\n.B " + roff(join(f.names, ", ")) + (f.takes_value ? " \\fIvalue\\fR" : "") + "\n" + roff(f.description) + "\n";
    }
    if (!v.footer.empty()) out += ".PP\n" + roff_footer(v.footer);
  }
  out += ".SH OPTIONS\n";
  for (const Flag& f : verbs.front().flags) out += ".TP\n.B " + roff(join(f.names, ", ")) + "\n" + roff(f.description) + "\n";
  out += ".SH EXIT STATUS\n.TP\n0\ndone\n.TP\n1\nfailed; one line that begins with \"porthole: \" on standard error says why\n"
         ".TP\n2\nwrong usage\n.TP\n130\nended by Ctrl\\-C before it was done\n"
         ".SH ENVIRONMENT\n.TP\n.B PORTHOLE_LOG\nset to anything: a node logs to standard error\n"
         ".TP\n.B PORTHOLE_PLAIN_RELAYS\nset to anything: a node talks to all relays without TLS. For laboratories: who can see such a "
         "login can receive in the node's place\n"
         ".TP\n.BR SSL_CERT_FILE \", \" SSL_CERT_DIR\nwhere the system's certificate authorities are\n"
         ".SH FILES\nIn the state directory, mode 0700:\n.TP\n.I node.json\nkeys and login of a node. Whoever has it is that node\n"
         ".TP\n.I node.sock\ncontrol socket of the running node; its mode (0600) is the access control\n"
         ".TP\n.I lock\nheld by the process that uses the directory\n"
         ".SH SEE ALSO\n.BR ssh (1)\n(ProxyCommand),\n.BR curl (1)\n(\\-\\-socks5\\-hostname)\n";
  return out;
}

void add_completion_command(CLI::App& root, std::function<int()>& run, const std::string& version) {
  CLI::App* c = root.add_subcommand("completion", "Prints a shell's completion script, or the man page");
  auto kind = std::make_shared<std::string>();
  c->add_option("kind", *kind, "bash, zsh, fish or man")->required()->check(CLI::IsMember({"bash", "zsh", "fish", "man"}));
  c->footer("After --statedir it completes the names of peers, too.\n"
            "Examples:\n"
            "  source <(porthole completion bash)\n"
            "  porthole completion zsh > ~/.zfunc/_porthole\n"
            "  porthole completion fish > ~/.config/fish/completions/porthole.fish\n"
            "  porthole completion man | man -l -");
  c->callback([&root, &run, kind, version] {
    run = [text = *kind == "man" ? man_page(root, version) : completion_script(root, *kind)] {
      std::fputs(text.c_str(), stdout);
      return 0;
    };
  });
}

}  // namespace porthole::app
