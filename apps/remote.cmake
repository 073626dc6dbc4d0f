include(${CMAKE_CURRENT_LIST_DIR}/session.cmake)
find_package(SQLite3 REQUIRED)
find_package(CLI11 REQUIRED)
porthole_app(remote DEPS app_support app_session coordinator relay capi
  LIBS SQLite::SQLite3 CLI11::CLI11 OpenSSL::SSL Boost::json Threads::Threads)
set_property(GLOBAL PROPERTY PORTHOLE_TEST_DEPS_OF_app_remote control)
