// The backend of the benchmark: HTTP/1.1 with keep-alive, one thread, responses prepared in advance.
//
//   upstream PORT
//
// The response to a target with `/bytes/N` has N bytes, any other one 300 bytes of JSON. It is sent when the request's body
// (Content-Length or chunked) has been read. Clients are trusted: they are the measured proxies.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { INPUT = 64 * 1024, PIECE = 256 * 1024, JSON = 300, EVENTS = 256 };

static char piece[PIECE];
static char small_response[1024];
static size_t small_length;
static int poller;

typedef enum { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, TRAILER_FIELD } Phase;

typedef struct {
  int socket;
  // The request.
  Phase phase;
  unsigned long long body_left, response_bytes;
  size_t filled;
  // The response: the buffer that is being sent, then `pieces_left` bytes of `piece`.
  const char *out;
  size_t out_length;
  unsigned long long pieces_left;
  bool waits_for_write;
  char big_head[256];
  char input[INPUT];
} Connection;

static void watch(Connection *c, int operation, unsigned events) {
  struct epoll_event event = {.events = events, .data.ptr = c};
  epoll_ctl(poller, operation, c->socket, &event);
}

static bool is_sending(const Connection *c) { return c->out_length || c->pieces_left; }

// Sends as much as the socket accepts; false if the client closed the connection.
static bool push(Connection *c) {
  while (is_sending(c)) {
    if (!c->out_length) {
      c->out = piece;
      c->out_length = c->pieces_left < PIECE ? c->pieces_left : PIECE;
      c->pieces_left -= c->out_length;
    }
    ssize_t sent = send(c->socket, c->out, c->out_length, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno != EAGAIN) return false;
      if (!c->waits_for_write) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
      return c->waits_for_write = true;
    }
    c->out += sent;
    c->out_length -= sent;
  }
  if (c->waits_for_write) watch(c, EPOLL_CTL_MOD, EPOLLIN);
  c->waits_for_write = false;
  return true;
}

static bool respond(Connection *c) {
  c->phase = HEAD;
  if (c->response_bytes) {
    int length = snprintf(c->big_head, sizeof c->big_head,
                          "HTTP/1.1 200 OK\r\nserver: upstream\r\ncontent-type: application/octet-stream\r\n"
                          "content-length: %llu\r\n\r\n", c->response_bytes);
    c->out = c->big_head;
    c->out_length = length;
    c->pieces_left = c->response_bytes;
  } else {
    c->out = small_response;
    c->out_length = small_length;
  }
  return push(c);
}

// Parses a head of `length` bytes, and determines the framing of its body.
static void read_head(Connection *c, char *head, size_t length) {
  head[length - 1] = 0;  // The last line feed, which is not needed any more.
  char *line_end = strstr(head, "\r\n");
  char *bytes = strstr(head, "/bytes/");
  c->response_bytes = bytes && bytes < line_end ? strtoull(bytes + 7, NULL, 10) : 0;
  char *size = strcasestr(head, "\r\ncontent-length:");
  c->body_left = size ? strtoull(size + 17, NULL, 10) : 0;
  bool chunked = !size && strcasestr(head, "\r\ntransfer-encoding:");
  c->phase = chunked ? CHUNK_SIZE : LENGTH;
}

static int digit(char c) { return c <= '9' ? c - '0' : (c | 32) - 'a' + 10; }

// Consumes as much as possible of a chunked body; sets *done at its end.
static size_t read_chunks(Connection *c, const char *from, size_t length, bool *done) {
  size_t at = 0;
  while (at < length && !*done) {
    char byte = from[at];
    if (c->phase == CHUNK_DATA) {
      size_t step = length - at < c->body_left ? length - at : c->body_left;
      at += step;
      c->body_left -= step;
      if (!c->body_left) c->phase = CHUNK_END;
      continue;
    }
    at++;
    if (c->phase == CHUNK_SIZE) {
      if (byte == '\n') c->phase = c->body_left ? CHUNK_DATA : TRAILER;
      else if (byte != '\r') c->body_left = c->body_left * 16 + digit(byte);
    } else if (c->phase == CHUNK_END) {
      if (byte == '\n') c->phase = CHUNK_SIZE;
    } else if (byte == '\n') {
      *done = c->phase == TRAILER;
      c->phase = TRAILER;
    } else if (byte != '\r') {
      c->phase = TRAILER_FIELD;
    }
  }
  return at;
}

// Processes the input, one request at a time. False if the client closed the connection or its head is too large.
static bool work(Connection *c) {
  size_t at = 0;
  while (!is_sending(c)) {
    char *rest = c->input + at;
    size_t length = c->filled - at;
    bool done = false;
    if (c->phase == HEAD) {
      char *end = memmem(rest, length, "\r\n\r\n", 4);
      if (!end && length == INPUT) return false;
      if (!end) break;
      size_t head = end + 4 - rest;
      read_head(c, rest, head);
      at += head;
      continue;
    } else if (c->phase == LENGTH) {
      size_t step = length < c->body_left ? length : c->body_left;
      at += step;
      c->body_left -= step;
      done = !c->body_left;
    } else {
      at += read_chunks(c, rest, length, &done);
    }
    if (!done) break;
    if (!respond(c)) return false;
  }
  memmove(c->input, c->input + at, c->filled - at);
  c->filled -= at;
  return true;
}

// Handles the events of a connection; false if it has ended.
static bool serve(Connection *c) {
  if (is_sending(c)) {
    if (!push(c)) return false;
    if (is_sending(c)) return true;
    if (!work(c)) return false;
  }
  if (c->filled == INPUT) return false;
  ssize_t got = recv(c->socket, c->input + c->filled, INPUT - c->filled, 0);
  if (got < 0) return errno == EAGAIN;
  c->filled += got;
  return got > 0 && work(c);
}

static void take_all(int listener) {
  int client, yes = 1;
  while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    Connection *c = malloc(sizeof *c);
    memset(c, 0, offsetof(Connection, input));
    c->socket = client;
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
  }
}

static void make_responses(void) {
  char body[JSON + 1];
  int length = snprintf(body, sizeof body, "{\"status\":\"success\",\"data\":[");
  for (int row = 0; length < JSON - 40; row++) length += sprintf(body + length, "{\"n\":%03d,\"v\":\"abcdefgh\"},", row);
  length += sprintf(body + length - 1, "],\"pad\":\"") - 1;
  while (length < JSON - 2) body[length++] = 'x';
  memcpy(body + length, "\"}", 3);
  small_length = sprintf(small_response, "HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 00:00:00 GMT\r\nserver: upstream\r\n"
                                       "content-type: application/json\r\ncontent-length: %d\r\n"
                                       "cache-control: no-store\r\n\r\n%s", JSON, body);
  for (int i = 0; i < PIECE; i++) piece[i] = (char)(i * 131 + (i >> 8));
}

int main(int count, char **arguments) {
  if (count != 2) return fprintf(stderr, "usage: upstream PORT\n"), 2;
  signal(SIGPIPE, SIG_IGN);
  make_responses();
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1])),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return perror("bind"), 1;
  poller = epoll_create1(0);
  struct epoll_event first = {.events = EPOLLIN}, events[EVENTS];
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &first);
  for (;;) {
    int ready = epoll_wait(poller, events, EVENTS, -1);
    for (int i = 0; i < ready; i++) {
      Connection *c = events[i].data.ptr;
      if (!c) {
        take_all(listener);
      } else if (!serve(c)) {
        close(c->socket);
        free(c);
      }
    }
  }
}
