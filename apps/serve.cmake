# The media server (porthole serve).
include(${CMAKE_CURRENT_LIST_DIR}/session.cmake)
pkg_check_modules(FFMPEG REQUIRED IMPORTED_TARGET libavformat libavcodec libavutil libswscale)
porthole_app(serve DEPS app_support app_session LIBS PkgConfig::FFMPEG PkgConfig::SODIUM fmt::fmt)
if(TARGET porthole_capi)
  target_link_libraries(porthole_app_serve PUBLIC porthole_capi)
  target_compile_definitions(porthole_app_serve PRIVATE PORTHOLE_HAS_NODE_LIBRARY)
endif()
