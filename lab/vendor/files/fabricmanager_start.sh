#!/bin/sh
# nvidia-fabricmanager-start.sh stand-in: what nvidia-fabricmanager.service runs. The real script first looks whether
# the NVSwitches are managed over InfiniBand (NVLink 5: HGX B200 and later) and then starts the subnet manager as well;
# the lab has no InfiniBand, so it always takes the other path. Messages: published journals.
config=/usr/share/nvidia/nvswitch/fabricmanager.cfg
echo "Detected Pre-NVL5 system"
/usr/bin/nv-fabricmanager -c "$config"
status=$?
if [ "$status" -ne 0 ]; then
    echo "\"/usr/bin/nv-fabricmanager -c $config\" failed! Exit code: $status"
    exit "$status"
fi
echo 'Started "Nvidia Fabric Manager"'
