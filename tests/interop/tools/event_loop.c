/* A program with an event loop of its own (poll) that embeds a node through porthole.h alone. It has one thread,
 * which makes only calls that do not wait for the network.
 *
 * It echoes TCP on port 7001 and datagrams on 7002, prints the node's events, and obeys lines of standard input:
 *   dial NETWORK HOST:PORT TEXT     sends TEXT and prints what comes back
 *   quit
 * Every output line is a JSON object. The last one says how long the loop was kept from polling at most.
 *
 * usage: event_loop STATE_DIR URL KEY_FILE HOSTNAME CA_FILE
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <porthole/porthole.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kFdsMax = 64, kTextMax = 1500 };

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void fail(const char* what, const porthole_error* e) {
  fprintf(stderr, "event_loop: %s: %s\n", what, e->message);
  exit(1);
}

static void print_text(const char* event, const char* data, size_t size) {
  printf("{\"event\":\"%s\",\"text\":\"", event);
  for (size_t i = 0; i < size; ++i) putchar(data[i] >= ' ' && data[i] <= '~' && data[i] != '"' && data[i] != '\\' ? data[i] : '.');
  puts("\"}");
}

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  porthole_error e;
  porthole_options o;
  porthole_options_init(&o);
  char key[512];
  snprintf(key, sizeof key, "file:%s", argv[3]);
  o.state_dir = argv[1];
  o.control_url = argv[2];
  o.auth_key = key;
  o.hostname = argv[4];
  o.ca_file = argv[5];
  double longest = 0, began = now_ms();
  porthole_node* node = porthole_start(&o, &e);
  if (!node) fail("start", &e);
  porthole_listener* listener = porthole_listen(node, 7001, &e);
  if (!listener) fail("listen", &e);
  int packets = -1;
  if (porthole_listen_packet(node, 7002, &packets, &e) != PORTHOLE_OK) fail("listen_packet", &e);
  printf("{\"event\":\"started\",\"ms\":%.1f}\n", now_ms() - began);

  struct pollfd fds[kFdsMax];
  enum { kEvents, kListener, kPackets, kInput, kFirstConnection };
  enum what { kAccepted, kDialling, kDialled };
  enum what what[kFdsMax] = {0};
  char texts[kFdsMax][256];
  int count = kFirstConnection, quit = 0;
  fds[kEvents].fd = porthole_event_fd(node);
  fds[kListener].fd = porthole_listener_fd(listener);
  fds[kPackets].fd = packets;
  fds[kInput].fd = STDIN_FILENO;
  char input[2048];
  size_t input_size = 0;
  while (!quit) {
    for (int i = 0; i < count; ++i) fds[i].events = POLLIN;
    if (poll(fds, (nfds_t)count, -1) < 0 && errno != EINTR) return 1;
    double turn = now_ms();

    if (fds[kEvents].revents) {
      char* json = NULL;
      while (porthole_next_event(node, 0, &json, NULL) == PORTHOLE_OK && json) {
        puts(json);
        porthole_free(json);
      }
    }
    if (fds[kListener].revents && count < kFdsMax) {
      int fd = -1;
      char peer[64];
      if (porthole_accept(listener, 0, &fd, peer, sizeof peer, &e) == PORTHOLE_OK) {
        printf("{\"event\":\"accepted\",\"peer\":\"%s\"}\n", peer);
        fds[count].fd = fd;
        fds[count].revents = 0;
        what[count++] = kAccepted;
      }
    }
    if (fds[kPackets].revents) {
      char data[kTextMax], peer[64];
      size_t size = 0;
      while (porthole_receive_from(packets, 0, data, sizeof data, &size, peer, sizeof peer, &e) == PORTHOLE_OK)
        porthole_send_to(packets, peer, data, size, NULL);
    }
    if (fds[kInput].revents) {
      ssize_t n = read(STDIN_FILENO, input + input_size, sizeof input - 1 - input_size);
      if (n <= 0) quit = 1;
      else input_size += (size_t)n;
      input[input_size] = '\0';
      for (char* line_end; (line_end = strchr(input, '\n'));) {
        *line_end = '\0';
        char network[8], address[128], text[256];
        if (strcmp(input, "quit") == 0) quit = 1;
        if (count < kFdsMax && sscanf(input, "dial %7s %127s %255[^\n]", network, address, text) == 3) {
          int fd = -1;
          if (porthole_dial_begin(node, network, address, 20000, &fd, &e) != PORTHOLE_OK) fail("dial", &e);
          fds[count].fd = fd;
          fds[count].revents = 0;
          memcpy(texts[count], text, sizeof text);
          what[count++] = kDialling;
        }
        input_size -= (size_t)(line_end + 1 - input);
        memmove(input, line_end + 1, input_size + 1);
      }
    }
    for (int i = kFirstConnection; i < count; ++i) {
      if (!fds[i].revents) continue;
      char data[kTextMax];
      if (what[i] == kDialling) {
        int fd = -1;
        if (porthole_dial_end(fds[i].fd, &fd, &e) == PORTHOLE_OK) {
          close(fds[i].fd);
          fds[i].fd = fd;
          what[i] = kDialled;
          if (send(fd, texts[i], strlen(texts[i]), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) perror("send");
          continue;
        }
        print_text("dial_failed", e.message, strlen(e.message));
      }
      ssize_t n = what[i] == kDialling ? 0 : recv(fds[i].fd, data, sizeof data, MSG_DONTWAIT);
      if (n < 0 && errno == EAGAIN) continue;
      if (n > 0 && what[i] == kAccepted) {
        if (send(fds[i].fd, data, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) == n) continue;
      }
      if (n > 0) print_text("answer", data, (size_t)n);
      close(fds[i].fd);
      --count;
      fds[i] = fds[count];
      what[i] = what[count];
      memcpy(texts[i], texts[count], sizeof texts[i]);
      --i;
    }
    turn = now_ms() - turn;
    if (turn > longest) longest = turn;
  }
  for (int i = kFirstConnection; i < count; ++i) close(fds[i].fd);
  close(packets);
  porthole_listener_close(listener);
  porthole_close(node);
  printf("{\"event\":\"end\",\"longest_turn_ms\":%.1f}\n", longest);
  return 0;
}
