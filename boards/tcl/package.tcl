# Packages the Verilog beside it as an IP: interfaces, and the registers that settings.tcl lists.
# Ref: AMD UG1118, Creating and Packaging Custom IP; UG1393, "RTL Kernels".
source settings.tcl

create_project -force package work/package -part $part
add_files -norecurse $verilog
set_property top $top [current_fileset]
update_compile_order -fileset sources_1
lassign [split $vlnv :] vendor library ip version
ipx::package_project -root_dir work/ip -vendor $vendor -library $library -taxonomy /KernelIP \
  -import_files -force -set_current true
set core [ipx::current_core]
set_property name $ip $core
set_property version $version $core
foreach parameter [ipx::get_user_parameters -of_objects $core] {
  ipx::remove_user_parameter [get_property NAME $parameter] $core
}

ipx::associate_bus_interfaces -clock $clock_port -reset $reset_port $core
ipx::associate_bus_interfaces -busif s_axi_control -clock $clock_port $core
foreach master $masters {
  ipx::associate_bus_interfaces -busif $master -clock $clock_port $core
}
ipx::infer_bus_interface interrupt xilinx.com:signal:interrupt_rtl:1.0 $core

foreach old [ipx::get_memory_maps -quiet s_axi_control -of_objects $core] {
  ipx::remove_memory_map s_axi_control $core
}
set map [ipx::add_memory_map s_axi_control $core]
set_property slave_memory_map_ref s_axi_control \
  [ipx::get_bus_interfaces s_axi_control -of_objects $core]
set block [ipx::add_address_block reg0 $map]
set_property range $register_bytes $block
set_property width 32 $block
foreach entry $registers {
  lassign $entry register offset bits access bus fields
  set added [ipx::add_register $register $block]
  set_property address_offset $offset $added
  set_property size $bits $added
  set_property access $access $added
  if {$bus ne ""} {
    set parameter [ipx::add_register_parameter ASSOCIATED_BUSIF $added]
    set_property value $bus $parameter
  }
  foreach {field bit} $fields {
    set part_of [ipx::add_field $field $added]
    set_property bit_offset $bit $part_of
    set_property bit_width 1 $part_of
  }
}
