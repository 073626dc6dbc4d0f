#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "cli/command.h"
#include "client/connector.h"
#include "client/elsewhere.h"
#include "client/error.h"
#include "client/limits.h"
#include "client/output.h"
#include "client/playback.h"
#include "client/range.h"
#include "client/session.h"
#include "client/store.h"
#include "client/strategy.h"
#include "client/tailnet.h"
#include "session/limits.h"
#include "session/names.h"
#include "support/support.h"

namespace porthole::app {
namespace {

namespace asio = boost::asio;
using asio::awaitable;
using boost::json::object;
using namespace porthole::client;
using namespace std::chrono_literals;

struct ClientOptions {
  std::string state_dir, ca_file, url, server, item, password_file, name, listen = "127.0.0.1:0", output, range;
  bool json = false, no_wait = false, automatic = false, local = false, remote = false, relay_only = false;
};

std::string default_state_dir() {
  const char* xdg = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  if (xdg && *xdg == '/') return std::string(xdg) + "/porthole/client";
  if (home && *home) return std::string(home) + "/.local/state/porthole/client";
  throw CommandError("there is no home directory: name a folder with --statedir", 2);
}

// What every verb of the client shares: its options, its store, its event loop, and the tailnets it has started.
class Context {
 public:
  explicit Context(const ClientOptions& o)
      : options(o), store(o.state_dir.empty() ? default_state_dir() : o.state_dir), stop_(io, ::dup(signal.fd())) {
    device = store.device(o.name);
  }

  void event(object e) const {
    if (options.json) print_event(e);
  }
  // For people, on stderr, so that it never mixes with what a script reads.
  void say(const std::string& text) const {
    if (!options.json) print_log(session::clean_text(text, 2000));
  }

  // Runs one coroutine to its end; SIGINT and SIGTERM end it early. What it throws comes out here.
  int run(awaitable<void> work) {
    std::exception_ptr failure;
    bool finished = false;
    io.restart();
    asio::co_spawn(io, std::move(work), [&](std::exception_ptr e) {
      failure = e;
      finished = true;
      io.stop();
    });
    stop_.async_wait(asio::posix::stream_descriptor::wait_read, [this](boost::system::error_code error) {
      if (!error) io.stop();
    });
    io.run();
    stop_.cancel();
    if (failure) std::rethrow_exception(failure);
    interrupted = !finished;
    if (interrupted)
      for (auto& [profile, t] : tailnets_) t->shut_down();
    return 0;
  }

  std::shared_ptr<TailnetClient> tailnet(const SavedServer& server) {
    std::string profile = server.tailnet_profile.empty() ? server.id : server.tailnet_profile;
    std::shared_ptr<TailnetClient>& t = tailnets_[profile];
    if (!t) {
      t = std::make_shared<TailnetClient>(store.dir() + "/tailnet/" + profile, session::tailnet_hostname(device.name),
                                          options.ca_file, native_node_factory(options.relay_only));
      t->observe([this](const TailnetStatus& s) {
        object e{{"event", "tailnet"}, {"state", name_of(s.state)}};
        if (!s.problem.empty()) e["problem"] = s.problem;
        event(e);
        if (s.state == TailnetState::kJoining && !s.problem.empty()) say("not on the tailnet yet: " + s.problem);
      });
    }
    return t;
  }

  Surroundings surroundings(const SavedServer& server) {
    Surroundings out;
    out.device_id = device.id;
    out.device_name = device.name;
    out.tailnet = [this, server] { return tailnet(server); };
    out.ask = [name = server.name, stop = signal.fd()](const std::string&) { return ask(name, stop); };
    out.event = [this](object e) {
      event(e);
      std::string what(e["event"].as_string());
      if (what == "local_failed") say(std::string(e["reason"].as_string()));
      if (what == "remote_attempt") say("connecting remotely" + (e["attempt"] == 1 ? std::string() : ", attempt " + boost::json::serialize(e["attempt"])) + " ...");
      if (what == "remote_failed") say(std::string(e["reason"].as_string()));
    };
    return out;
  }

  Way way() const {
    if (options.local) return Way::kLocal;
    if (options.remote) return Way::kRemote;
    return options.automatic ? Way::kAuto : Way::kAsk;
  }

  const ClientOptions& options;
  StopSignal signal;
  asio::io_context io{1};
  Store store;
  Store::Device device;
  bool interrupted = false;

 private:
  static bool ask(const std::string& name, int stop) {
    int tty = ::open("/dev/tty", O_RDWR | O_CLOEXEC);
    if (tty < 0) return false;  // nobody to ask
    std::string question = "Connect remotely to \"" + name + "\"? [y/N] ";
    [[maybe_unused]] ssize_t n = ::write(tty, question.data(), question.size());
    char answer[16] = "";
    pollfd p[2] = {{tty, POLLIN, 0}, {stop, POLLIN, 0}};
    while (::poll(p, 2, -1) < 0 && errno == EINTR) {
    }
    n = p[0].revents ? ::read(tty, answer, sizeof answer - 1) : 0;
    ::close(tty);
    return n > 0 && (answer[0] == 'y' || answer[0] == 'Y');
  }

  asio::posix::stream_descriptor stop_;
  std::map<std::string, std::shared_ptr<TailnetClient>> tailnets_;
};

// Waits as long as the node needs to note that it has joined; what it meets is said as it comes. False when it has not.
bool finish_join(Context& c, const SavedServer& server) {
  std::shared_ptr<TailnetClient> tailnet = c.tailnet(server);
  auto deadline = std::chrono::steady_clock::now() + kJoinTimeout;
  c.say("joining the tailnet ...");
  while (!c.signal.stopped()) {
    try {
      tailnet->wait_connected(200ms);
      c.event({{"event", "joined"}, {"server", server.name}, {"coordination_url", server.coordination_url}});
      c.say("remote access is ready");
      return true;
    } catch (const ClientError& e) {
      bool late = std::chrono::steady_clock::now() >= deadline;
      if (!late && tailnet->status().state != TailnetState::kFailed) continue;
      c.event({{"event", "join_failed"}, {"server", server.name}, {"reason", e.what()}});
      c.say(std::string("remote access is not ready: ") + e.what() + "; it is tried again when it is needed");
      return false;
    }
  }
  throw CommandError("interrupted while joining the tailnet; the login is stored, and joining goes on when remote access is needed");
}

// Stores the answer of a login; the saved server as it is now.
SavedServer remember(Context& c, const SavedServer& from, const LoginAnswer& answer) {
  SavedServer saved = from;
  bool uuid = answer.server_id.size() == 36;
  c.store.update([&](std::vector<SavedServer>& list) {
    auto it = std::find_if(list.begin(), list.end(), [&](const SavedServer& s) {
      return (uuid && s.id == answer.server_id) || (!from.hostname.empty() && s.hostname == from.hostname);
    });
    if (it != list.end()) {
      saved = *it;
      saved.hostname = from.hostname;
      saved.password = from.password;
      saved.pin = from.pin;
    } else {
      saved.id = uuid ? answer.server_id : random_uuid();
    }
    saved.name = answer.server_name.empty() ? from.hostname : answer.server_name;
    if (!answer.remote_ip.empty() || !answer.remote_hostname.empty()) {
      saved.remote_hostname = answer.remote_hostname;
      saved.remote_ip = answer.remote_ip;
      saved.coordination_url = answer.coordination_url;
      saved.tailnet_preauth_key = answer.tailnet_preauth_key;
      // Servers of one household hand out one key for this device: one place on their tailnet serves them all.
      if (saved.tailnet_profile.empty()) {
        saved.tailnet_profile = saved.id;
        for (const SavedServer& s : list)
          if (s.id != saved.id && s.coordination_url == saved.coordination_url &&
              s.tailnet_preauth_key == saved.tailnet_preauth_key && !s.tailnet_profile.empty())
            saved.tailnet_profile = s.tailnet_profile;
      }
    }
    if (it != list.end())
      *it = saved;
    else
      list.push_back(saved);
  });
  return saved;
}

// One login on the LAN; `server` gets the pin.
LoginAnswer log_in(Context& c, const session::HostPort& at, SavedServer& server, bool new_key) {
  LoginAnswer answer;
  auto work = [&]() -> awaitable<void> {
    asio::ip::tcp::socket socket = co_await connect_direct(at.host, at.port, kConnectTimeout);
    std::shared_ptr<Session> session = co_await Session::open(std::move(socket), server.hostname, server.pin);
    server.pin = session->fingerprint();
    LoginDetails details;
    details.password = server.password;
    details.device_id = c.device.id;
    details.device_name = c.device.name;
    details.want_remote = true;
    details.new_key = new_key;
    answer = co_await session->login(std::move(details));
    session->close();
  };
  c.run(work());
  if (c.interrupted) throw CommandError("interrupted");
  return answer;
}

int login(const ClientOptions& o) {
  session::HostPort at = as_typed([&] { return session::parse_server_url(o.url, session::kServicePort); });
  Context c(o);
  std::string where = session::join_host_port(at.host, at.port);
  SavedServer server;
  server.hostname = where;
  for (const SavedServer& s : c.store.servers())
    if (s.hostname == where) server.pin = s.pin;
  server.password = o.password_file.empty() ? prompt_secret("Password of " + where + ": ") : secret_argument("file:" + o.password_file);
  bool first_use = server.pin.empty();
  LoginAnswer answer = log_in(c, at, server, false);
  // A server known under another address must still be the same one.
  for (const SavedServer& s : c.store.servers())
    if (s.id == answer.server_id && !s.pin.empty() && s.pin != server.pin)
      throw ClientError(Failure::kPinChanged, "\"" + s.name + "\" shows another certificate than before: expected " + s.pin +
                                                  ", got " + server.pin + "; if it was set up anew, remove the saved server first");
  SavedServer saved = remember(c, server, answer);
  object e{{"event", "login"}, {"server", saved.name}, {"id", saved.id}, {"fingerprint", saved.pin},
           {"first_use", first_use}, {"remote", saved.has_remote_details()},
           {"remote_hostname", saved.remote_hostname}, {"remote_ip", saved.remote_ip}};
  if (!answer.remote_problem.empty()) e["remote_problem"] = answer.remote_problem;
  c.event(e);
  c.say("logged in to \"" + saved.name + "\" (" + saved.id + ")");
  if (first_use) c.say("its certificate is remembered from now on: " + saved.pin);
  if (!answer.remote_problem.empty()) c.say("no remote access for now: " + answer.remote_problem);
  bool fresh = !answer.remote_ip.empty() || !answer.remote_hostname.empty();
  if (fresh && !answer.coordination_url.empty() && !answer.tailnet_preauth_key.empty() && !o.no_wait) {
    std::shared_ptr<TailnetClient> tailnet = c.tailnet(saved);
    // Also where it joined before: the stored login may have ended since, and this is the place to mend that.
    tailnet->join(saved.coordination_url, saved.tailnet_preauth_key);
    if (!finish_join(c, saved) && tailnet->status().kind == NodeError::Kind::kUnauthorized) {
      answer = log_in(c, at, server, true);
      saved = remember(c, server, answer);
      if (!answer.tailnet_preauth_key.empty()) {
        tailnet->join(saved.coordination_url, saved.tailnet_preauth_key);
        finish_join(c, saved);
      }
    }
  }
  return 0;
}

int list_servers(const ClientOptions& o) {
  Context c(o);
  for (const SavedServer& s : c.store.servers()) {
    if (o.json) {
      print_answer({{"id", s.id}, {"name", s.name}, {"hostname", s.hostname}, {"fingerprint", s.pin},
                    {"remote_hostname", s.remote_hostname}, {"remote_ip", s.remote_ip},
                    {"coordination_url", s.coordination_url}, {"has_remote_details", s.has_remote_details()}});
    } else {
      std::printf("%s  %s  %s%s\n", s.id.c_str(), s.name.c_str(), s.hostname.empty() ? "(remote only)" : s.hostname.c_str(),
                  s.has_remote_details() ? "  remote access" : "");
    }
  }
  return 0;
}

// Connects and says how.
awaitable<Connected> connect_and_say(Context& c, const SavedServer& server, Way way) {
  Connected out = co_await connect_server(server, way, c.surroundings(server));
  std::string path = out.remote ? c.tailnet(server)->path_to(out.peer) : "local";
  c.event({{"event", "connected"}, {"server", server.name}, {"path", path}});
  c.say("connected to \"" + server.name + "\" (" + path + ")");
  co_return out;
}

int connect(const ClientOptions& o) {
  Context c(o);
  SavedServer server = c.store.find(o.server);
  auto work = [&]() -> awaitable<void> {
    Connected connected = co_await connect_and_say(c, server, c.way());
    auto begin = std::chrono::steady_clock::now();
    co_await connected.session->ping();
    double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    c.event({{"event", "ping"}, {"ms", ms}});
    connected.session->close();
  };
  c.run(work());
  return c.interrupted ? 1 : 0;
}

std::string duration_text(std::uint64_t ms) {
  std::uint64_t s = ms / 1000;
  char text[32];
  std::snprintf(text, sizeof text, "%llu:%02llu:%02llu", static_cast<unsigned long long>(s / 3600),
                static_cast<unsigned long long>(s / 60 % 60), static_cast<unsigned long long>(s % 60));
  return text;
}

int list_items(const ClientOptions& o) {
  Context c(o);
  SavedServer server = c.store.find(o.server);
  auto work = [&]() -> awaitable<void> {
    Connected connected = co_await connect_and_say(c, server, c.way());
    std::vector<Item> items = co_await connected.session->list();
    for (const Item& i : items) {
      if (o.json) {
        print_answer({{"event", "item"}, {"id", i.id}, {"title", i.title}, {"file_name", i.file_name},
                     {"duration_ms", i.duration_ms}, {"size_bytes", i.size_bytes}, {"video_codec", i.video_codec},
                     {"audio_codec", i.audio_codec}, {"width", i.width}, {"height", i.height},
                     {"content_type", i.content_type}, {"has_poster", i.has_poster}, {"unplayable", i.unplayable}});
      } else {
        std::printf("%s  %s  %s  %.1f MB  %s%s%s%s\n", i.id.c_str(), i.title.c_str(), duration_text(i.duration_ms).c_str(),
                    static_cast<double>(i.size_bytes) / 1e6, i.video_codec.c_str(), i.video_codec.empty() ? "" : " ",
                    i.audio_codec.c_str(), i.unplayable.empty() ? "" : ("  [" + i.unplayable + "]").c_str());
      }
    }
    connected.session->close();
  };
  c.run(work());
  return c.interrupted ? 1 : 0;
}

// By id, file name or title, or a beginning of one that fits only one item.
Item find_item(const std::vector<Item>& items, const std::string& what) {
  std::vector<const Item*> exact, begins;
  for (const Item& i : items) {
    if (i.id == what || i.title == what || i.file_name == what)
      exact.push_back(&i);
    else if (i.id.starts_with(what) || i.title.starts_with(what))
      begins.push_back(&i);
  }
  const auto& found = exact.empty() ? begins : exact;
  if (found.size() == 1) return *found.front();
  throw ClientError(Failure::kNotFound, found.empty() ? "there is no item \"" + what + "\" (see \"porthole client ls\")"
                                                      : "\"" + what + "\" fits several items; use the id");
}

int play(const ClientOptions& o) {
  as_typed([&] { Playback::check_listen(o.listen); });
  Context c(o);
  SavedServer server = c.store.find(o.server);
  Connected connected;
  std::unique_ptr<Playback> playback;
  bool connecting = false;
  asio::steady_timer settled(c.io, std::chrono::steady_clock::time_point::max());
  // Once it plays, nobody is asked any more: a lost session comes back the way that works.
  Way again = o.local ? Way::kLocal : o.remote ? Way::kRemote : Way::kAuto;
  auto source = [&]() -> awaitable<std::shared_ptr<Session>> {
    boost::system::error_code ignored;
    while (connecting) co_await settled.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    if (!connected.session->ended()) co_return connected.session;
    connecting = true;
    std::exception_ptr failure;
    try {
      c.event({{"event", "reconnecting"}, {"reason", connected.session->end_reason()}});
      c.say(connected.session->end_reason());
      connected = co_await connect_and_say(c, server, again);
    } catch (...) {
      failure = std::current_exception();
    }
    connecting = false;
    settled.cancel();
    if (failure) std::rethrow_exception(failure);
    co_return connected.session;
  };
  auto work = [&]() -> awaitable<void> {
    connected = co_await connect_and_say(c, server, c.way());
    std::vector<Item> items = co_await connected.session->list();
    Item item = find_item(items, o.item);
    if (!item.unplayable.empty()) throw ClientError(Failure::kNotFound, "\"" + item.title + "\" cannot be played: " + item.unplayable);
    playback = std::make_unique<Playback>(c.io, o.listen, source, [&](const std::string& problem) {
      c.event({{"event", "problem"}, {"reason", problem}});
      c.say(problem);
    });
    std::string path = connected.remote ? c.tailnet(server)->path_to(connected.peer) : "local";
    c.event({{"event", "playing"}, {"url", playback->url(item)}, {"path", path}, {"title", item.title},
             {"size_bytes", item.size_bytes}, {"content_type", item.content_type}});
    if (!o.json) std::printf("%s\n", playback->url(item).c_str());
    std::fflush(stdout);
    asio::steady_timer timer(c.io);
    for (;;) {
      timer.expires_after(1s);
      co_await timer.async_wait(asio::use_awaitable);
      if (connected.session->ended()) {
        // At once and not at the player's next request: whoever watches learns why while it still plays from its buffer.
        try {
          co_await source();
        } catch (const ClientError& e) {
          bool final = e.failure() == Failure::kKeyInvalid || e.failure() == Failure::kRevoked;
          std::string reason = final ? "\"" + server.name + "\" no longer accepts this device: " + e.what() : e.what();
          c.event({{"event", "problem"}, {"reason", reason}});
          if (final) throw ClientError(Failure::kRevoked, reason);
          c.say(reason);
          continue;
        }
      }
      std::string now = connected.remote ? c.tailnet(server)->path_to(connected.peer) : "local";
      if (now == path) continue;
      path = now;
      c.event({{"event", "path"}, {"path", path}});
      c.say("the path is " + path + " now");
    }
  };
  c.run(work());
  if (playback) c.event({{"event", "stopped"}, {"bytes", playback->bytes_served()}});
  return 0;
}

int get(const ClientOptions& o) {
  Output output(o.output);  // outlives a thread of the context's that waits for it
  Context c(o);
  SavedServer server = c.store.find(o.server);
  auto work = [&]() -> awaitable<void> {
    Connected connected = co_await connect_and_say(c, server, c.way());
    std::vector<Item> items = co_await connected.session->list();
    Item item = find_item(items, o.item);
    std::uint64_t offset = 0;
    std::uint64_t length = item.size_bytes;
    if (!o.range.empty()) {
      RangeAnswer range = parse_range("bytes=" + o.range, item.size_bytes);
      if (range.verdict != RangeVerdict::kPartial)
        throw CommandError("--range " + o.range + " is not a range within the " + std::to_string(item.size_bytes) + " bytes of the item", 2);
      offset = range.range.offset;
      length = range.range.length;
    }
    std::unique_ptr<ReadStream> stream = co_await connected.session->read(item.id, offset, length);
    output.open();
    auto begin = std::chrono::steady_clock::now();
    auto said = begin;
    std::uint64_t done = 0;
    for (;;) {
      std::string bytes = co_await stream->read();
      if (bytes.empty()) break;
      std::string_view rest = bytes;
      while (!rest.empty()) {
        if (!output.ready()) {
          // Not on this thread: a reader that pauses for long must cost neither the session nor the answer to Ctrl-C.
          auto wait = [&output, stop = c.signal.fd()] { output.wait(stop); };
          co_await elsewhere(wait);
        }
        if (c.signal.stopped()) throw CommandError("interrupted; " + output.unfinished());
        rest.remove_prefix(output.write(rest));
      }
      done += bytes.size();
      auto now = std::chrono::steady_clock::now();
      if (now - said < 1s) continue;
      said = now;
      c.event({{"event", "progress"}, {"bytes", done}, {"of", stream->length}});
      c.say(std::to_string(done / 1000) + " of " + std::to_string(stream->length / 1000) + " kB");
    }
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::string path = connected.remote ? c.tailnet(server)->path_to(connected.peer) : "local";
    output.finish();
    c.event({{"event", "done"}, {"bytes", done}, {"seconds", seconds}, {"path", path}});
    c.say(std::to_string(done) + " bytes in " + std::to_string(seconds) + " s (" + path + ")");
    stream.reset();
    connected.session->close();
  };
  c.run(work());
  if (c.interrupted) throw CommandError("interrupted; " + output.unfinished());
  return 0;
}

int remove_server(const ClientOptions& o) {
  Context c(o);
  SavedServer server = c.store.find(o.server);
  bool shared = false;
  c.store.update([&](std::vector<SavedServer>& list) {
    std::erase_if(list, [&](const SavedServer& s) { return s.id == server.id; });
    for (const SavedServer& s : list) shared = shared || (!s.tailnet_profile.empty() && s.tailnet_profile == server.tailnet_profile);
  });
  if (!server.tailnet_profile.empty() && !shared) {
    std::error_code ignored;
    std::filesystem::remove_all(c.store.dir() + "/tailnet/" + server.tailnet_profile, ignored);
  }
  c.event({{"event", "removed"}, {"server", server.name}, {"id", server.id}});
  c.say("\"" + server.name + "\" is forgotten");
  return 0;
}

}  // namespace

void add_client_commands(CLI::App& app, Run& run) {
  auto o = std::make_shared<ClientOptions>();
  CLI::App* client = app.add_subcommand("client", "The client of a media server: log in, look, play");
  client->require_subcommand(1);
  client->footer(
      "Examples:\n"
      "  porthole client login wss://192.168.1.20:8443 --name \"Curtis's iPad\"\n"
      "  porthole client ls \"Living room\" --auto\n"
      "  porthole client play \"Living room\" \"Night train\" --auto\n"
      "  porthole client get \"Living room\" \"Night train\" --remote --output train.mp4");
  auto verb = [&](const char* name, const char* text, const char* example, int (*function)(const ClientOptions&)) {
    CLI::App* v = client->add_subcommand(name, text);
    v->footer(std::string("Example:\n  porthole client ") + example);
    v->add_option("--statedir", o->state_dir, "Folder for saved servers and tailnet state (default: ~/.local/state/porthole/client)")
        ->check([](const std::string& folder) { return folder.empty() ? "the name of the folder is empty" : ""; });
    v->add_option("--ca-file", o->ca_file, "PEM certificates to trust for the coordination server, besides the system's");
    v->add_flag("--relay-only", o->relay_only, "Never a direct path through the tailnet");
    v->add_flag("--json", o->json, "Events as JSON lines on stdout");
    v->callback([o, &run, function] {
      run = [o, function] {
        try {
          return function(*o);
        } catch (const CommandError& e) {
          if (o->json) print_event({{"event", "error"}, {"reason", e.what()}});
          throw;
        }
      };
    });
    return v;
  };
  auto ways = [&](CLI::App* v) {
    v->add_option("SERVER", o->server, "Name or id of a saved server")->required();
    v->add_option("--name", o->name, "Name of this device");
    CLI::Option* automatic = v->add_flag("--auto", o->automatic, "Go on remotely without asking when the LAN does not lead there");
    CLI::Option* local = v->add_flag("--local", o->local, "The LAN only");
    CLI::Option* remote = v->add_flag("--remote", o->remote, "The tailnet only");
    automatic->excludes(local)->excludes(remote);
    local->excludes(remote);
  };
  CLI::App* v = verb("login", "Logs in on the LAN and remembers the server", "login wss://192.168.1.20:8443", login);
  v->add_option("URL", o->url, "wss://HOST:PORT or HOST:PORT")->required();
  v->add_option("--password-file", o->password_file, "File with the password; without it, asked on the terminal");
  v->add_option("--name", o->name, "Name of this device");
  v->add_flag("--no-wait", o->no_wait, "Do not wait for remote access to be ready");
  verb("servers", "Saved servers", "servers --json", list_servers);
  ways(verb("connect", "Tries the way to a saved server", "connect \"Living room\" --auto", connect));
  ways(verb("ls", "What the server has", "ls \"Living room\" --auto --json", list_items));
  v = verb("play", "Plays an item: prints a URL for a player and serves it until Ctrl-C",
           "play \"Living room\" \"Night train\" --auto", play);
  ways(v);
  v->add_option("ITEM", o->item, "Title, file name or id")->required();
  v->add_option("--listen", o->listen, "Loopback ADDR:PORT of the URL")->capture_default_str();
  v = verb("get", "Copies an item to a file", "get \"Living room\" \"Night train\" --remote --output train.mp4", get);
  ways(v);
  v->add_option("ITEM", o->item, "Title, file name or id")->required();
  v->add_option("--output", o->output, "File to write; without it, or with -, standard output");
  v->add_option("--range", o->range, "Bytes A-B, A- or -N");
  v = verb("remove", "Forgets a saved server", "remove \"Living room\"", remove_server);
  v->add_option("SERVER", o->server, "Name or id of a saved server")->required();
}

}  // namespace porthole::app
