# What the media server and its client share: the session messages (proto/session.proto), TLS identities, names; and, with the
# coordination service, an HTTP client.
include_guard()
find_package(Protobuf REQUIRED)
add_library(porthole_session_proto STATIC ${CMAKE_SOURCE_DIR}/proto/session.proto)
set(session_proto_dir ${CMAKE_BINARY_DIR}/proto)
file(MAKE_DIRECTORY ${session_proto_dir})
protobuf_generate(TARGET porthole_session_proto LANGUAGE cpp IMPORT_DIRS ${CMAKE_SOURCE_DIR}/proto
  PROTOC_OUT_DIR ${session_proto_dir})
target_include_directories(porthole_session_proto SYSTEM PUBLIC ${session_proto_dir})
target_link_libraries(porthole_session_proto PUBLIC protobuf::libprotobuf-lite)

porthole_app(session DEPS app_support session_proto LIBS OpenSSL::SSL OpenSSL::Crypto)
target_include_directories(porthole_app_session SYSTEM PUBLIC ${Boost_INCLUDE_DIRS})
# Asio and Beast are compiled once (session/asio.cpp), not into every file that includes them.
target_compile_definitions(porthole_app_session PUBLIC BOOST_ASIO_SEPARATE_COMPILATION BOOST_BEAST_SEPARATE_COMPILATION)
if(PORTHOLE_SANITIZE STREQUAL "thread")
  # The thread sanitizer knows no fences. Asio's stand beside locks and atomic counters, which order the same accesses.
  target_compile_definitions(porthole_app_session PUBLIC BOOST_ASIO_DISABLE_FENCED_BLOCK)
endif()
