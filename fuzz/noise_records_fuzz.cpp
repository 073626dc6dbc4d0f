// links: base crypto wire ts2021
// Handshake messages, records and the early payload of the control protocol, in pieces of any size.
#include <cstdint>

#include "ts2021/noise.h"
#include "wire/ts2021.h"

using namespace porthole;
using namespace porthole::ts2021;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  SeededRng rng(1);
  const auto server = crypto::MachinePrivate::generate(rng);
  const auto machine = crypto::MachinePrivate::generate(rng);
  const std::size_t slice = 1 + data[1];
  Bytes input(data + 2, size - 2);
  switch (data[0] % 4) {
    case 0: {
      (void)wire::check_ts2021_initiation(input);
      (void)respond_noise(input, server, rng).ok();
      break;
    }
    case 1: {
      auto i = NoiseInitiator::start(131, server.public_key(), machine, rng);
      (void)i->finish(input).ok();
      break;
    }
    case 2: {
      const ByteVector key(32, 1);
      RecordStream records(key, key);
      // A valid record first: what follows it is read with the counter at one.
      ByteVector stream, plain;
      (void)records.seal(as_bytes("hello"), stream).ok();
      append(stream, input);
      for (Bytes rest = stream; !rest.empty();) {
        Bytes piece = rest.first(std::min(rest.size(), slice));
        if (!records.open(piece, plain).ok()) break;
        rest = rest.subspan(piece.size());
      }
      break;
    }
    default: {
      EarlyPayloadReader reader;
      ByteVector rest;
      for (Bytes left = input; !left.empty();) {
        Bytes piece = left.first(std::min(left.size(), slice));
        if (!reader.consume(piece, rest).ok()) break;
        left = left.subspan(piece.size());
      }
    }
  }
  return 0;
}
