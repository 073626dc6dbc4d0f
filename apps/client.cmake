# The media client (porthole client). Its tests talk to a real media server in the same process.
include(${CMAKE_CURRENT_LIST_DIR}/session.cmake)
porthole_app(client DEPS app_support app_session LIBS fmt::fmt)
if(TARGET porthole_capi)
  target_link_libraries(porthole_app_client PUBLIC porthole_capi)
  target_compile_definitions(porthole_app_client PRIVATE PORTHOLE_HAS_NODE_LIBRARY)
endif()
set_property(GLOBAL PROPERTY PORTHOLE_TEST_DEPS_OF_app_client app_serve)
