# The media server (porthole serve).
include(${CMAKE_CURRENT_LIST_DIR}/session.cmake)
pkg_check_modules(FFMPEG REQUIRED libavformat libavcodec libavutil libswscale)
porthole_app(serve DEPS app_support app_session LIBS PkgConfig::SODIUM fmt::fmt ${CMAKE_DL_LIBS})
# Its headers only: serve loads the libraries when it runs (serve/ffmpeg.h).
target_include_directories(porthole_app_serve SYSTEM PRIVATE ${FFMPEG_INCLUDE_DIRS})
if(TARGET porthole_capi)
  target_link_libraries(porthole_app_serve PUBLIC porthole_capi)
  target_compile_definitions(porthole_app_serve PRIVATE PORTHOLE_HAS_NODE_LIBRARY)
endif()
