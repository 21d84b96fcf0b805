
set_property sdx_kernel true $core
set_property sdx_kernel_type rtl $core
set_property xpm_libraries {XPM_CDC XPM_MEMORY XPM_FIFO} $core
ipx::create_xgui_files $core
ipx::update_checksums $core
ipx::check_integrity -kernel $core
ipx::save_core $core
close_project
package_xo -force -xo_path $name.xo -kernel_name $name -ip_directory work/ip \
  -kernel_xml kernel.xml -ctrl_protocol $protocol
