#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <sodium.h>

#include "crypto/aead.h"
#include "crypto/dh.h"
#include "crypto/hash.h"
#include "crypto/secret.h"
#include "crypto/siphash.h"
#include "support/vectors.h"

namespace porthole::crypto {
namespace {

ByteVector unhex(const char* text) { return test::unhex(std::string_view(text)); }
ByteVector unhex(const boost::json::value& v) { return test::unhex(v); }

ByteVector random_bytes(Rng& rng, std::size_t n) {
  ByteVector out(n);
  rng.fill(out);
  return out;
}

// ---- hashes

TEST(Blake2s, Rfc7693Abc) {
  EXPECT_EQ(to_hex(blake2s(as_bytes("abc"))), "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982");
  EXPECT_EQ(to_hex(blake2s({})), "69217a3079908094e11121d042354a7c1f55b6482ca1a51e1b250dfd1ed0eef9");
}

// RFC 7693 appendix E: one digest over every combination of output size, input size, with and without key.
TEST(Blake2s, Rfc7693SelfTest) {
  auto sequence = [](std::size_t n, std::uint32_t seed) {
    ByteVector out(n);
    std::uint32_t a = 0xDEAD4BADu * seed, b = 1;
    for (std::uint8_t& c : out) {
      const std::uint32_t t = a + b;
      a = b;
      b = t;
      c = static_cast<std::uint8_t>(t >> 24);
    }
    return out;
  };
  Blake2s all;
  for (std::size_t out_size : {16u, 20u, 28u, 32u}) {
    for (std::size_t in_size : {0u, 3u, 64u, 65u, 255u, 1024u}) {
      const ByteVector in = sequence(in_size, static_cast<std::uint32_t>(in_size));
      const ByteVector key = sequence(out_size, static_cast<std::uint32_t>(out_size));
      for (bool keyed : {false, true}) {
        ByteVector digest(out_size);
        Blake2s h(out_size, keyed ? Bytes(key) : Bytes());
        h.update(in);
        h.finish(digest);
        all.update(digest);
      }
    }
  }
  Hash32 digest;
  all.finish(digest);
  EXPECT_EQ(to_hex(digest), "6a411f08ce25adcdfb02aba641451cec53c598b24f4fc787fbdc88797f4c1dfe");
}

TEST(Blake2s, EqualsOpenSslForEveryLengthAndSplit) {
  SeededRng rng(1);
  for (std::size_t n = 0; n <= 300; ++n) {
    const ByteVector m = random_bytes(rng, n);
    Hash32 expected;
    unsigned size = 0;
    ASSERT_EQ(EVP_Digest(m.data(), m.size(), expected.data(), &size, EVP_blake2s256(), nullptr), 1);
    EXPECT_EQ(blake2s(m), expected) << n;
    const std::size_t cut = static_cast<std::size_t>(rng.below(n + 1));
    EXPECT_EQ(blake2s(Bytes(m).first(cut), Bytes(m).subspan(cut)), expected) << n << " cut at " << cut;
    Blake2s bytewise;
    for (std::size_t i = 0; i < n; ++i) bytewise.update(Bytes(m).subspan(i, 1));
    Hash32 out;
    bytewise.finish(out);
    EXPECT_EQ(out, expected);
  }
}

TEST(Hkdf, WireGuardVectors) {
  const boost::json::value doc = test::load_vectors("wireguard.json");
  std::size_t n = 0;
  for (const auto& v : doc.at("kdf").as_array()) {
    const ByteVector key = unhex(v.at("key")), input = unhex(v.at("input"));
    Hash32 a, b, c;
    hkdf_blake2s(key, input, a, b, c);
    EXPECT_EQ(Bytes(a).size(), 32u);
    EXPECT_EQ(to_hex(a), test::text(v.at("t1")));
    EXPECT_EQ(to_hex(b), test::text(v.at("t2")));
    EXPECT_EQ(to_hex(c), test::text(v.at("t3")));
    Hash32 one, two_a, two_b;
    hkdf_blake2s(key, input, one);
    hkdf_blake2s(key, input, two_a, two_b);
    EXPECT_EQ(one, a);
    EXPECT_EQ(two_a, a);
    EXPECT_EQ(two_b, b);
    if (key.size() == 32) {  // the chaining key may be replaced in place
      ByteVector chaining = key;
      hkdf_blake2s(chaining, input, chaining, two_b);
      EXPECT_EQ(to_hex(chaining), test::text(v.at("t1")));
    }
    ++n;
  }
  EXPECT_EQ(n, 5u);
}

TEST(Hmac, LongKeysAreHashedFirst) {
  const ByteVector key(100, 7);
  Hash32 a, b;
  hmac_blake2s(key, as_bytes("message"), a);
  hmac_blake2s(blake2s(key), as_bytes("message"), b);
  EXPECT_EQ(a, b);
}

TEST(Sha256, KnownDigests) {
  EXPECT_EQ(to_hex(sha256({})), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(to_hex(sha256(as_bytes("abc"))), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 parts;
  parts.update(as_bytes("a"));
  Sha256 moved(std::move(parts));
  moved.update(as_bytes("bc"));
  EXPECT_EQ(moved.finish(), sha256(as_bytes("abc")));
}

// The paper's key and its one printed value, then every length against libsodium's crypto_shorthash, which is the same
// function.
TEST(SipHash, ReferenceVectors) {
  const ByteVector key = unhex("000102030405060708090a0b0c0d0e0f");
  const SipKey sip = SipKey::from_bytes(key);
  EXPECT_EQ(siphash24(sip, unhex("000102030405060708090a0b0c0d0e")), 0xa129ca6149be45e5u);
  EXPECT_EQ(siphash24(sip, {}), 0x726fdb47dd0e0e31u);
  EXPECT_EQ(siphash24(sip, unhex("00")), 0x74f839c593dc67fdu);
  ByteVector message;
  for (std::size_t n = 0; n < 300; ++n) {
    std::uint8_t expected[crypto_shorthash_BYTES];
    crypto_shorthash(expected, message.data(), message.size(), key.data());
    EXPECT_EQ(siphash24(sip, message), load_le<std::uint64_t>(expected)) << n;
    message.push_back(static_cast<std::uint8_t>(n));
  }
}

// ---- X25519

SecretBytes<32> dh(Bytes scalar, Bytes point, bool* ok = nullptr) {
  const NodePrivate key = NodePrivate::from_bytes(scalar);
  SecretBytes<32> out;
  const bool r = x25519(key.reveal(), point, out);
  if (ok != nullptr) *ok = r;
  return out;
}

TEST(X25519, Rfc7748Section5) {
  EXPECT_EQ(to_hex(dh(unhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"),
                      unhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")).reveal()),
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");
  EXPECT_EQ(to_hex(dh(unhex("4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d"),
                      unhex("e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493")).reveal()),
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957");
}

TEST(X25519, Rfc7748KeyAgreement) {
  const auto alice = NodePrivate::from_bytes(unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
  const auto bob = NodePrivate::from_bytes(unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
  EXPECT_EQ(to_hex(alice.public_key().bytes()), "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
  EXPECT_EQ(to_hex(bob.public_key().bytes()), "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
  const char* const shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742";
  EXPECT_EQ(to_hex(dh(alice.reveal(), bob.public_key().bytes()).reveal()), shared);
  EXPECT_EQ(to_hex(dh(bob.reveal(), alice.public_key().bytes()).reveal()), shared);
}

TEST(X25519, Rfc7748Ladder1000) {
  ByteVector k(32), u(32);
  k[0] = u[0] = 9;
  for (int i = 1; i <= 1000; ++i) {
    const SecretBytes<32> r = dh(k, u);
    u = k;
    k = to_vector(r.reveal());
    if (i == 1) {
      EXPECT_EQ(to_hex(k), "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
    }
  }
  EXPECT_EQ(to_hex(k), "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51");
}

// Results of an independent big-integer ladder with scalar 01..20: points on the twist, coordinates at or above
// 2^255 - 19 (reduced), and the top bit (ignored).
TEST(X25519, TwistAndNonCanonicalPoints) {
  ByteVector scalar(32);
  for (std::size_t i = 0; i < 32; ++i) scalar[i] = static_cast<std::uint8_t>(i + 1);
  auto small = [](std::uint8_t u, std::uint8_t top = 0) {
    ByteVector p(32);
    p[0] = u;
    p[31] = top;
    return p;
  };
  auto near_top = [](std::uint8_t low) {
    ByteVector p(32, 0xff);
    p[0] = low;
    p[31] = 0x7f;
    return p;
  };
  const char* const of2 = "0989cc65eeda6d8051c96629f916d2b8d947e68219702d29a3efd3438698590a";
  const char* const of3 = "d476b0e36b7c2534b88be6b8cd53c37149b38a215886caffecacef54e6d8667c";
  const char* const of9 = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c";
  struct Case { ByteVector point; const char* result; };
  for (const Case& c : {
           Case{small(2), of2}, Case{small(3), of3},
           Case{small(4), "6e4da8bed22882bdc8b0407ccbad45ced8f9bac3e79657474b457a3263627b6d"},
           Case{small(5), "dbd0053725d068240e973897e0e743d5314afecaf5462fc8f9d6225f9d3fc105"},
           Case{small(6), "8d48e59e82574656e59ff8334161a9f01a44d8862fe0c5e4db403b7df559395c"},
           Case{small(9), of9}, Case{small(9, 0x80), of9},
           Case{near_top(0xef), of2}, Case{near_top(0xf0), of3}, Case{near_top(0xf6), of9},
           Case{near_top(0xfe), "c45d0d2d81d020fd9545d65a13ccbaebb1ca7fbfd5345b58b3f2f44548d3916a"},
           Case{near_top(0xff), "bc1a5eacfb62da8bffcf2bb301bd98686b9b43b694db9d62ef9440c2332ce759"}}) {
    bool ok = false;
    EXPECT_EQ(to_hex(dh(scalar, c.point, &ok).reveal()), c.result) << to_hex(c.point);
    EXPECT_TRUE(ok);
  }
}

TEST(X25519, LowOrderPointsAreRefused) {
  const boost::json::value doc = test::load_vectors("wireguard.json");
  std::vector<ByteVector> points;
  for (const auto& v : doc.at("low_order_points").as_array()) points.push_back(unhex(v.at("public")));
  ASSERT_EQ(points.size(), 4u);
  // The rest of the small subgroup on curve and twist, their non-canonical forms, and all of them with the top bit set.
  points.push_back(unhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"));
  points.push_back(unhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"));
  points.push_back(unhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"));
  for (std::size_t i = 0, n = points.size(); i < n; ++i) {
    points.push_back(points[i]);
    points.back()[31] |= 0x80;
  }
  SeededRng rng(3);
  for (const ByteVector& p : points) {
    const NodePrivate key = NodePrivate::generate(rng);
    bool ok = true;
    const SecretBytes<32> shared = dh(key.reveal(), p, &ok);
    EXPECT_FALSE(ok) << to_hex(p);
    EXPECT_TRUE(shared.is_zero());
    EXPECT_FALSE(BoxKey::make(key.reveal(), p).has_value()) << to_hex(p);
  }
}

// ---- boxes

TEST(Box, SharedKeysOfTheDiscoVectors) {
  const boost::json::value doc = test::load_vectors("disco.json");
  const auto& keys = doc.at("keys");
  std::size_t n = 0;
  for (const auto& [name, value] : doc.at("shared_keys").as_object()) {
    const std::string pair(name);
    const std::string a = pair.substr(0, pair.find('_')), b = pair.substr(pair.find('_') + 1);
    const ByteVector expected = unhex(value);
    auto secret = [&](const std::string& who) { return unhex(keys.at(who).at("disco_private")); };
    auto shown = [&](const std::string& who) { return unhex(keys.at(who).at("disco_public")); };
    const auto ab = BoxKey::make(secret(a), shown(b));
    const auto ba = BoxKey::make(secret(b), shown(a));
    ASSERT_TRUE(ab && ba);
    EXPECT_EQ(to_hex(DiscoPrivate::from_bytes(secret(a)).public_key().bytes()), to_hex(shown(a)));
    // The key itself stays inside; the same box from libsodium with the vector's key shows that it is equal.
    SeededRng rng(n + 1);
    const ByteVector nonce = random_bytes(rng, 24);
    for (std::size_t size : {0u, 1u, 62u, 1312u}) {
      const ByteVector plain = random_bytes(rng, size);
      ByteVector box(size + 16), reference(size + 16), out(size);
      ab->seal(nonce, plain, box);
      crypto_secretbox_easy(reference.data(), plain.data(), size, nonce.data(), expected.data());
      EXPECT_EQ(box, reference);
      ASSERT_TRUE(ba->open(nonce, box, out));
      EXPECT_EQ(out, plain);
      for (std::size_t i = 0; i < std::min<std::size_t>(box.size(), 40); ++i) {
        box[i] ^= 1;
        EXPECT_FALSE(ba->open(nonce, box, out));
        box[i] ^= 1;
      }
    }
    ByteVector out;
    EXPECT_FALSE(ab->open(nonce, ByteVector(15), out));
    ++n;
  }
  EXPECT_EQ(n, 3u);
}

// ---- AEAD

const char* const kSunscreen =
    "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";

ByteVector run_seal(Bytes key, Bytes nonce, Bytes aad, Bytes plain) {
  ByteVector data = to_vector(plain);
  data.resize(plain.size() + kAeadTagSize);
  AeadKey(AeadKey::Direction::kSeal, key).seal(nonce, aad, data);
  ByteVector one_shot(plain.size() + kAeadTagSize);
  aead_seal(key, nonce, aad, plain, one_shot);
  EXPECT_EQ(data, one_shot);
  return data;
}

TEST(Aead, Rfc8439) {
  const ByteVector key = unhex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f");
  const ByteVector nonce = unhex("070000004041424344454647"), aad = unhex("50515253c0c1c2c3c4c5c6c7");
  const ByteVector sealed = run_seal(key, nonce, aad, as_bytes(kSunscreen));
  EXPECT_EQ(to_hex(sealed),
            "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b"
            "1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
            "3ff4def08e4b7a9de576d26586cec64b6116"
            "1ae10b594f09e26a7e902ecbd0600691");
  // The second vector of RFC 8439, appendix A.5, opened.
  const ByteVector key2 = unhex("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0");
  const ByteVector nonce2 = unhex("000000000102030405060708"), aad2 = unhex("f33388860000000000004e91");
  ByteVector sealed2 = unhex(
      "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb24c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b0100"
      "d4f03b7f355894cf332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c8559797a06ef4f0ef61c186324e2b350638"
      "3606907b6a7c02b0f9f6157b53c867e4b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523eaf4534d7f83fa115"
      "5b0047718cbc546a0d072b04b3564eea1b422273f548271a0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a6727627097a10"
      "49e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29a6ad5cb4022b02709b"
      "eead9d67890cbb22392336fea1851f38");
  AeadKey open(AeadKey::Direction::kOpen, key2);
  ASSERT_TRUE(open.open(nonce2, aad2, sealed2));
  EXPECT_TRUE(as_text(sealed2).starts_with("Internet-Drafts are draft documents valid for a maximum of six months"));
}

TEST(Aead, XChaChaDraftVector) {
  const ByteVector key = unhex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f");
  const ByteVector nonce = unhex("404142434445464748494a4b4c4d4e4f5051525354555657");
  const ByteVector aad = unhex("50515253c0c1c2c3c4c5c6c7");
  const Bytes plain = as_bytes(kSunscreen);
  ByteVector sealed(plain.size() + 16), out(plain.size());
  xaead_seal(key, nonce, aad, plain, sealed);
  EXPECT_EQ(to_hex(Bytes(sealed).first(16)), "bd6d179d3e83d43b9576579493c0e939");
  EXPECT_EQ(to_hex(Bytes(sealed).last(16)), "c0875924c1c7987947deafd8780acf49");
  ASSERT_TRUE(xaead_open(key, nonce, aad, sealed, out));
  EXPECT_TRUE(equal(out, plain));
  for (std::size_t i = 0; i < sealed.size(); ++i) {
    sealed[i] ^= 0x80;
    EXPECT_FALSE(xaead_open(key, nonce, aad, sealed, out));
    sealed[i] ^= 0x80;
  }
}

TEST(Aead, EverySizeBothImplementationsAgree) {
  SeededRng rng(5);
  const ByteVector key = random_bytes(rng, 32);
  AeadKey seal(AeadKey::Direction::kSeal, key), open(AeadKey::Direction::kOpen, key);
  for (std::size_t size = 0; size <= 1400; size += size < 260 ? 1 : 61) {
    for (std::size_t aad_size : {std::size_t{0}, std::size_t{1}, std::size_t{16}, std::size_t{33}}) {
      const ByteVector plain = random_bytes(rng, size), aad = random_bytes(rng, aad_size), nonce = random_bytes(rng, 12);
      ByteVector data = plain;
      data.resize(size + 16);
      seal.seal(nonce, aad, data);
      ByteVector reference(size + 16);
      aead_seal(key, nonce, aad, plain, reference);
      ASSERT_EQ(data, reference) << size << " aad " << aad_size;
      ASSERT_TRUE(open.open(nonce, aad, data));
      EXPECT_TRUE(equal(Bytes(data).first(size), plain));
    }
  }
}

TEST(Aead, ForgeriesAreRefusedAndLeaveNothing) {
  SeededRng rng(6);
  const ByteVector key = random_bytes(rng, 32), nonce = random_bytes(rng, 12), aad = random_bytes(rng, 20);
  AeadKey open(AeadKey::Direction::kOpen, key);
  for (std::size_t size : {0u, 1u, 15u, 16u, 17u, 64u, 257u}) {
    const ByteVector plain = random_bytes(rng, size);
    ByteVector sealed(size + 16), out(size);
    aead_seal(key, nonce, aad, plain, sealed);
    auto refused = [&](Bytes n, Bytes a, Bytes s) {
      ByteVector in_place = to_vector(s);
      const bool refused_in_place = !open.open(n, a, in_place);
      if (s.size() == sealed.size() && size >= 15) {
        EXPECT_FALSE(equal(Bytes(in_place).first(size), plain));
      }
      out.resize(s.size() >= 16 ? s.size() - 16 : 0);
      return refused_in_place && !aead_open(key, n, a, s, out);
    };
    for (std::size_t bit = 0; bit < sealed.size() * 8; ++bit) {  // every bit of ciphertext and tag
      sealed[bit / 8] ^= static_cast<std::uint8_t>(1 << (bit % 8));
      EXPECT_TRUE(refused(nonce, aad, sealed)) << size << " bit " << bit;
      sealed[bit / 8] ^= static_cast<std::uint8_t>(1 << (bit % 8));
    }
    for (std::size_t cut = 0; cut < sealed.size(); ++cut) EXPECT_TRUE(refused(nonce, aad, Bytes(sealed).first(cut)));
    ByteVector longer = sealed;
    longer.push_back(0);
    EXPECT_TRUE(refused(nonce, aad, longer));
    for (std::size_t i = 0; i < 12; ++i) {
      ByteVector other = nonce;
      other[i] ^= 1;
      EXPECT_TRUE(refused(other, aad, sealed));
    }
    EXPECT_TRUE(refused(nonce, {}, sealed));
    EXPECT_TRUE(refused(nonce, Bytes(aad).first(19), sealed));
    out.resize(size);
    EXPECT_TRUE(aead_open(key, nonce, aad, sealed, out));  // nothing above broke the key
    EXPECT_EQ(out, plain);
  }
}

TEST(Aead, BatchesUseTheCounterAsNonceAndJudgeEachJobAlone) {
  SeededRng rng(7);
  const ByteVector key = random_bytes(rng, 32);
  AeadKey seal(AeadKey::Direction::kSeal, key), open(AeadKey::Direction::kOpen, key);
  std::vector<ByteVector> plain, data;
  std::vector<AeadJob> jobs;
  for (std::size_t i = 0; i < 32; ++i) {
    plain.push_back(random_bytes(rng, i * 41));
    data.push_back(plain.back());
    data.back().resize(plain.back().size() + 16);
  }
  for (std::size_t i = 0; i < 32; ++i) jobs.push_back({data[i], (std::uint64_t{1} << 40) + i, false});
  seal.process(jobs);
  for (std::size_t i = 0; i < 32; ++i) {
    ByteVector nonce(12), reference(data[i].size());
    store_le(nonce.data() + 4, jobs[i].counter);
    aead_seal(key, nonce, {}, plain[i], reference);
    EXPECT_EQ(data[i], reference);
    EXPECT_TRUE(jobs[i].ok);
  }
  data[3].back() ^= 1;
  jobs[5].counter ^= 1;
  std::uint8_t tiny[15] = {};
  jobs.push_back({tiny, 0, true});
  open.process(jobs);
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const bool expect_ok = i != 3 && i != 5 && i != 32;
    EXPECT_EQ(jobs[i].ok, expect_ok) << i;
    if (expect_ok) {
      EXPECT_TRUE(equal(Bytes(data[i]).first(plain[i].size()), plain[i]));
    }
  }
}

// ---- secrets

TEST(Secret, MovingWipesTheSource) {
  SecretBytes<32> a(ByteVector(32, 7));
  SecretBytes<32> b(std::move(a));
  EXPECT_TRUE(a.is_zero());  // NOLINT: the point of the test
  EXPECT_FALSE(b.is_zero());
  SecretBytes<32> c;
  c = std::move(b);
  EXPECT_TRUE(b.is_zero());  // NOLINT
  EXPECT_TRUE(equal_secret(c.reveal(), ByteVector(32, 7)));
  EXPECT_TRUE(equal_secret(c.duplicate().reveal(), c.reveal()));
  EXPECT_FALSE(equal_secret(c.reveal(), ByteVector(31, 7)));
  EXPECT_FALSE(equal_secret(c.reveal(), ByteVector(32, 8)));
  EXPECT_TRUE(equal_secret({}, {}));
}

TEST(Secret, PrivateKeysClampAndRoundTrip) {
  const auto key = NodePrivate::from_bytes(ByteVector(32, 0xff));
  EXPECT_EQ(key.reveal()[0], 0xf8);
  EXPECT_EQ(key.reveal()[31], 0x7f);
  const SecretText text = key.to_text();
  const auto back = NodePrivate::parse(text.reveal());
  ASSERT_TRUE(back.has_value());
  EXPECT_TRUE(equal_secret(back->reveal(), key.reveal()));
  EXPECT_EQ(back->public_key(), key.public_key());
  EXPECT_FALSE(NodePrivate::parse("privkey:00").has_value());
  EXPECT_FALSE(NodePrivate::parse("nodekey:" + std::string(64, '0')).has_value());
  EXPECT_TRUE(NodePrivate().public_key().is_zero());
}

}  // namespace
}  // namespace porthole::crypto
